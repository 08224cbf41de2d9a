//! By the clock of a place: six fields, seconds first, and an IANA time zone.

use std::str::FromStr;

use chrono::{SubsecRound, TimeDelta};
use chrono_tz::Tz;
use croner::parser::{CronParser, Seconds, Year};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Trigger;
use crate::db::Timestamp;
use crate::planes::pipelines::definition::Fault;

/// Due times that may be made up for.
const MAX_CATCH_UP: usize = 100;

/// A schedule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Cron {
    /// Seconds, minutes, hours, day of month, month, day of week: `*/30 * * * * *` is every 30 seconds.
    pub schedule: String,
    /// The IANA zone by whose clock it goes, e.g. `Europe/Madrid`.
    #[serde(default = "utc")]
    pub time_zone: String,
    /// How many due times that passed while nobody looked are made up for, 0 to 100; the newest first.
    #[serde(default = "once")]
    pub catch_up: usize,
}

fn utc() -> String {
    "UTC".to_owned()
}
fn once() -> usize {
    1
}

impl Cron {
    fn read(&self) -> Result<(croner::Cron, Tz), Fault> {
        let parser = CronParser::builder().seconds(Seconds::Required).year(Year::Disallowed).build();
        let schedule = parser.parse(&self.schedule).map_err(|error| {
            let text = format!("`{}` is no schedule of six fields such as `0 */5 * * * *`: {error}", self.schedule);
            Fault::at("when.schedule", text)
        })?;
        let zone = Tz::from_str(&self.time_zone).map_err(|_| {
            Fault::at("when.time_zone", format!("`{}` is no IANA time zone such as Europe/Madrid", self.time_zone))
        })?;
        Ok((schedule, zone))
    }
}

impl Trigger for Cron {
    fn kind(&self) -> &'static str {
        "cron"
    }
    fn check(&self) -> Vec<Fault> {
        let mut faults: Vec<Fault> = self.read().err().into_iter().collect();
        if self.catch_up > MAX_CATCH_UP {
            faults.push(Fault::at("when.catch_up", format!("takes 0 to {MAX_CATCH_UP}")));
        }
        if faults.is_empty() && self.due_after(Timestamp::new(chrono::DateTime::UNIX_EPOCH)).is_none() {
            faults.push(Fault::at("when.schedule", "never comes"));
        }
        faults
    }
    fn due_after(&self, at: Timestamp) -> Option<Timestamp> {
        let (schedule, zone) = self.read().ok()?;
        // Due times are whole seconds, whatever they are counted from.
        let mut from = at.utc().trunc_subsecs(0);
        // The local clock goes back once a year; what comes is looked for until it lies ahead.
        for _ in 0..4 {
            let next = schedule.find_next_occurrence(&from.with_timezone(&zone), false).ok()?;
            let next = Timestamp::new(next.with_timezone(&chrono::Utc));
            if next > at {
                return Some(next);
            }
            from += TimeDelta::hours(1);
        }
        None
    }
    fn catch_up(&self) -> usize {
        self.catch_up
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use chrono::{Timelike, Utc};
    use proptest::prelude::*;

    pub(in crate::planes::pipelines::triggers) fn cron(schedule: &str, zone: &str) -> Cron {
        Cron { schedule: schedule.to_owned(), time_zone: zone.to_owned(), catch_up: 1 }
    }
    pub(in crate::planes::pipelines::triggers) fn time(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    #[test]
    fn a_clock_change_neither_doubles_nor_drops() {
        let daily = cron("0 30 2 * * *", "Europe/Madrid");
        // The clock jumps from 02:00 to 03:00 on 2026-03-29: the skipped time still comes once, that day.
        let mut at = time("2026-03-27T12:00:00Z");
        let mut days = Vec::new();
        for _ in 0..4 {
            at = daily.due_after(at).expect("a time");
            days.push(at.utc().with_timezone(&chrono_tz::Europe::Madrid).format("%d %H:%M").to_string());
        }
        assert_eq!(days.iter().map(|day| &day[..2]).collect::<Vec<_>>(), ["28", "29", "30", "31"], "{days:?}");
        // It goes back from 03:00 to 02:00 on 2026-10-25: once.
        let first = daily.due_after(time("2026-10-24T12:00:00Z")).expect("a time");
        let second = daily.due_after(first).expect("a time");
        assert_eq!(second.since(first).as_secs() / 3600, 25 - u64::from(first == time("2026-10-25T01:30:00Z")));
    }

    #[test]
    fn due_times_are_whole_seconds() {
        let often = cron("*/30 * * * * *", "UTC");
        assert_eq!(often.due_after(time("2026-11-28T07:08:22.533Z")), Some(time("2026-11-28T07:08:30Z")));
        assert_eq!(often.due_after(time("2026-11-28T07:08:30Z")), Some(time("2026-11-28T07:09:00Z")));
        assert_eq!(often.due_after(time("2026-11-28T07:08:29.999Z")), Some(time("2026-11-28T07:08:30Z")));
    }

    #[test]
    fn wrong_schedules_are_refused_at_their_place() {
        for (schedule, zone, path) in [
            ("*/5 * * * *", "UTC", "when.schedule"),
            ("61 * * * * *", "UTC", "when.schedule"),
            ("0 0 0 30 2 *", "UTC", "when.schedule"),
            ("0 * * * * *", "Europe/Nowhere", "when.time_zone"),
        ] {
            let faults = cron(schedule, zone).check();
            assert_eq!(faults.first().map(|fault| fault.path.as_str()), Some(path), "{schedule}");
        }
    }

    proptest! {
        #[test]
        fn the_next_time_lies_ahead_and_fits_in_every_zone(
            seconds in 1_600_000_000_i64..1_900_000_000,
            zone in prop::sample::select(vec!["Europe/Madrid", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata", "UTC"]),
            minute in 0_u32..60,
        ) {
            let at = Timestamp::new(chrono::DateTime::<Utc>::from_timestamp(seconds, 0).expect("a time"));
            let hourly = cron(&format!("0 {minute} * * * *"), zone);
            let next = hourly.due_after(at).expect("a time");
            prop_assert!(next > at);
            prop_assert!(next.since(at).as_secs() <= 2 * 3600, "{} after {}", next, at);
            let tz: Tz = zone.parse().expect("a zone");
            prop_assert_eq!(next.utc().with_timezone(&tz).second(), 0);
            let daily = cron("0 30 2 * * *", zone);
            let (first, mut day) = (daily.due_after(at).expect("a time"), at);
            for _ in 0..2 {
                day = daily.due_after(day).expect("a time");
            }
            let apart = day.since(first).as_secs();
            prop_assert!((22 * 3600..=26 * 3600).contains(&apart), "{} and {}", first, day);
        }
    }
}
