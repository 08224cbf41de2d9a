//! The best slot: when a publication goes out, given the windows, its neighbours and the day's quota.

use chrono::{DateTime, DurationRound, TimeDelta, Utc};

use super::windows::{PlatformSchedule, Window};

/// How far ahead a slot is looked for.
pub const HORIZON_DAYS: i64 = 14;

/// Times that are taken on one platform, ascending, and how far that is known.
#[derive(Debug, Clone)]
pub struct Taken {
    pub times: Vec<DateTime<Utc>>,
    /// From here on nothing is known, so no slot is given.
    pub known_until: DateTime<Utc>,
}

/// When a publication may go out, beside the platform's own windows.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Not before this.
    pub from: DateTime<Utc>,
    /// Only before this, e.g. the campaign's end.
    pub until: Option<DateTime<Utc>>,
}

/// The first free time in the platform's next windows.
pub fn best_slot(platform: &PlatformSchedule, bounds: Bounds, taken: &Taken) -> Option<DateTime<Utc>> {
    platform.windows_from(bounds.from, HORIZON_DAYS).find_map(|window| slot_in(platform, window, bounds, taken))
}

/// The first free time in one window: a spacing away from its neighbours, on a local date with quota left.
pub fn slot_in(platform: &PlatformSchedule, window: Window, bounds: Bounds, taken: &Taken) -> Option<DateTime<Utc>> {
    let end = [Some(window.closes_at), bounds.until, Some(taken.known_until)].into_iter().flatten().min()?;
    let mut slot = window.opens_at.max(bounds.from);
    // Each turn passes a neighbour or a date, so it ends.
    while slot < end {
        let too_near = taken.times.iter().rfind(|time| (**time - slot).abs() < platform.spacing);
        if let Some(neighbour) = too_near {
            slot = *neighbour + platform.spacing;
            continue;
        }
        let date = platform.local_date(slot);
        if taken.times.iter().filter(|time| platform.local_date(**time) == date).count() < platform.daily_quota {
            return Some(slot);
        }
        slot = platform.next_local_date(slot);
    }
    None
}

/// The next full minute: people read slots.
pub fn full_minute(at: DateTime<Utc>) -> DateTime<Utc> {
    let minute = TimeDelta::minutes(1);
    at.duration_trunc(minute).map_or(at, |whole| if whole == at { at } else { whole + minute })
}

#[cfg(test)]
mod tests {
    use super::super::windows::tests::platform;
    use super::*;
    use proptest::prelude::*;

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().expect("a time")
    }

    fn taken(times: &[&str]) -> Taken {
        Taken { times: times.iter().map(|text| at(text)).collect(), known_until: DateTime::<Utc>::MAX_UTC }
    }

    fn from(text: &str) -> Bounds {
        Bounds { from: at(text), until: None }
    }

    #[test]
    fn the_window_that_is_open_comes_first() {
        let evening = platform("18:00", "23:00", "UTC");
        assert_eq!(best_slot(&evening, from("2026-11-20T19:03:00Z"), &taken(&[])), Some(at("2026-11-20T19:03:00Z")));
        assert_eq!(best_slot(&evening, from("2026-11-20T23:00:00Z"), &taken(&[])), Some(at("2026-11-21T18:00:00Z")));
    }

    #[test]
    fn neighbours_are_kept_at_a_distance() {
        let evening = platform("18:00", "18:40", "UTC");
        let neighbours = taken(&["2026-11-20T17:50:00Z", "2026-11-20T18:15:00Z"]);
        assert_eq!(
            best_slot(&evening, from("2026-11-20T12:00:00Z"), &neighbours),
            Some(at("2026-11-20T18:30:00Z")),
            "18:05 is ten minutes from the second"
        );
    }

    #[test]
    fn a_full_day_is_passed_over_also_inside_a_window() {
        let mut night = platform("23:00", "02:00", "UTC");
        night.daily_quota = 1;
        let one = taken(&["2026-11-20T23:00:00Z"]);
        assert_eq!(best_slot(&night, from("2026-11-20T23:30:00Z"), &one), Some(at("2026-11-21T00:00:00Z")));
    }

    #[test]
    fn a_campaigns_end_and_the_end_of_knowledge_bound_it() {
        let evening = platform("18:00", "23:00", "UTC");
        let ends = Bounds { from: at("2026-11-20T12:00:00Z"), until: Some(at("2026-11-20T18:00:00Z")) };
        assert_eq!(best_slot(&evening, ends, &taken(&[])), None);
        let unknown = Taken { times: Vec::new(), known_until: at("2026-11-20T18:00:00Z") };
        assert_eq!(best_slot(&evening, from("2026-11-20T12:00:00Z"), &unknown), None);
    }

    #[test]
    fn minutes_are_full() {
        assert_eq!(full_minute(at("2026-11-20T18:00:00.001Z")), at("2026-11-20T18:01:00Z"));
        assert_eq!(full_minute(at("2026-11-20T18:01:00Z")), at("2026-11-20T18:01:00Z"));
    }

    proptest! {
        #[test]
        fn a_slot_is_in_a_window_spaced_and_within_quota(
            mut minutes in proptest::collection::vec(0_i64..4000, 0..60), start in 0_i64..3000, quota in 1_usize..6
        ) {
            let mut madrid = platform("21:00", "01:30", "Europe/Madrid");
            madrid.daily_quota = quota;
            minutes.sort_unstable();
            let zero = at("2026-10-24T00:00:00Z"); // over the night of the clock change
            let taken = Taken {
                times: minutes.iter().map(|minute| zero + TimeDelta::minutes(*minute)).collect(),
                known_until: DateTime::<Utc>::MAX_UTC,
            };
            let from = zero + TimeDelta::minutes(start);
            let slot = best_slot(&madrid, Bounds { from, until: None }, &taken).expect("there is room within 14 days");
            prop_assert!(slot >= from);
            prop_assert!(madrid.current_or_next(slot).is_some_and(|window| window.contains(slot)));
            prop_assert!(taken.times.iter().all(|time| (*time - slot).abs() >= madrid.spacing));
            let date = madrid.local_date(slot);
            prop_assert!(taken.times.iter().filter(|time| madrid.local_date(**time) == date).count() < quota);
        }
    }
}
