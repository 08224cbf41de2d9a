//! When a platform may be published to: windows in local time, as instants.
//!
//! A window belongs to a local date. A local time that occurs twice opens a window at its first occurrence and closes
//! it at its last; one that is skipped is read with the offset before the gap (as in RFC 5545). So on the days that
//! change the clock a window is neither dropped nor doubled.

use std::collections::BTreeMap;

use chrono::{DateTime, LocalResult, NaiveDate, NaiveDateTime, TimeDelta, TimeZone, Utc};
use chrono_tz::Tz;

use super::observe::{SchedulerSection, WindowView};
use crate::config;
use crate::db::Timestamp;

/// A day's minutes.
const DAY: i64 = 24 * 60;

/// A window is `closing_soon` for this long before it closes.
const CLOSING_SOON_MINUTES: i64 = 60;

/// Why windows cannot be made from the configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    #[error("publishing.platforms is empty: name at least one platform")]
    NoPlatforms,
    #[error("publishing: `{name}` is no IANA time zone; write one such as Europe/Madrid")]
    TimeZone { name: String },
    #[error("publishing.platforms.{platform}.{field}: `{text}` is no time of day; write HH:MM, 00:00 to 24:00")]
    TimeOfDay { platform: String, field: &'static str, text: String },
    #[error("publishing.platforms.{platform}.{field}: {reason}")]
    Bound { platform: String, field: &'static str, reason: &'static str },
}

/// One opening of a platform's window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// The local date to which it belongs.
    pub date: NaiveDate,
    pub opens_at: DateTime<Utc>,
    /// The first instant that is outside again.
    pub closes_at: DateTime<Utc>,
}

impl Window {
    /// Whether `at` is inside.
    pub fn contains(&self, at: DateTime<Utc>) -> bool {
        self.opens_at <= at && at < self.closes_at
    }
}

/// One platform's windows and bounds.
#[derive(Debug, Clone)]
pub struct PlatformSchedule {
    zone: Tz,
    /// Minutes after local midnight.
    opens: i64,
    /// Minutes after the same midnight; above a day's when the window passes midnight.
    closes: i64,
    /// Between two publications.
    pub spacing: TimeDelta,
    /// Publications a local date.
    pub daily_quota: usize,
    /// What one publication takes from its campaign's budget.
    pub cost_cents: i64,
}

/// All platforms' windows.
#[derive(Debug, Clone)]
pub struct Schedule {
    platforms: BTreeMap<String, PlatformSchedule>,
}

impl Schedule {
    /// Reads the windows; the first value that makes no sense is the error.
    pub fn from_config(config: &config::Publishing) -> Result<Self, ScheduleError> {
        if config.platforms.is_empty() {
            return Err(ScheduleError::NoPlatforms);
        }
        let platforms = config
            .platforms
            .iter()
            .map(|(name, platform)| {
                Ok((name.clone(), PlatformSchedule::from_config(name, platform, &config.time_zone)?))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { platforms })
    }

    /// The configured platforms, by name.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.platforms.keys().map(String::as_str)
    }

    /// One platform; none when it is not configured.
    pub fn get(&self, platform: &str) -> Option<&PlatformSchedule> {
        self.platforms.get(platform)
    }

    /// What the loop sees of the windows at `now`.
    pub fn section(&self, now: Timestamp) -> SchedulerSection {
        let mut section = SchedulerSection::default();
        for (platform, schedule) in &self.platforms {
            let Some(window) = schedule.current_or_next(now.utc()) else { continue };
            let active = window.contains(now.utc());
            let left = window.closes_at - now.utc();
            if active {
                section.active.push(platform.clone());
                if left <= TimeDelta::minutes(CLOSING_SOON_MINUTES) {
                    section.closing_soon.push(platform.clone());
                }
            }
            section.windows.push(WindowView {
                platform: platform.clone(),
                time_zone: schedule.zone.name().to_owned(),
                opens_at: window.opens_at.into(),
                closes_at: window.closes_at.into(),
                active,
                minutes_left: if active { left.num_minutes() } else { 0 },
            });
        }
        section.any_active = !section.active.is_empty();
        section
    }
}

impl PlatformSchedule {
    fn from_config(name: &str, platform: &config::Platform, common_zone: &str) -> Result<Self, ScheduleError> {
        let zone = platform.time_zone.as_deref().unwrap_or(common_zone);
        let zone: Tz = zone.parse().map_err(|_| ScheduleError::TimeZone { name: zone.to_owned() })?;
        let minutes = |field: &'static str, text: &str, latest: i64| {
            minutes_of_day(text).filter(|minutes| *minutes <= latest).ok_or_else(|| ScheduleError::TimeOfDay {
                platform: name.to_owned(),
                field,
                text: text.to_owned(),
            })
        };
        let opens = minutes("opens", &platform.opens, DAY - 1)?;
        let mut closes = minutes("closes", &platform.closes, DAY)?;
        if closes <= opens {
            closes += DAY;
        }
        let bound = |field, reason| ScheduleError::Bound { platform: name.to_owned(), field, reason };
        if platform.spacing_minutes > DAY as u64 {
            return Err(bound("spacing_minutes", "at most 1440, a day"));
        }
        if platform.daily_quota == 0 {
            return Err(bound("daily_quota", "at least 1"));
        }
        if platform.cost_cents < 0 {
            return Err(bound("cost_cents", "at least 0"));
        }
        Ok(Self {
            zone,
            opens,
            closes,
            spacing: TimeDelta::minutes(platform.spacing_minutes as i64),
            daily_quota: platform.daily_quota as usize,
            cost_cents: platform.cost_cents,
        })
    }

    /// The local date at an instant.
    pub fn local_date(&self, at: DateTime<Utc>) -> NaiveDate {
        at.with_timezone(&self.zone).date_naive()
    }

    /// The first instant of the local date after that of `at`.
    pub fn next_local_date(&self, at: DateTime<Utc>) -> DateTime<Utc> {
        let midnight = (self.local_date(at) + TimeDelta::days(1)).and_time(chrono::NaiveTime::MIN);
        self.first(midnight).max(at + TimeDelta::seconds(1))
    }

    /// The same local time `days` later.
    pub fn same_time_later(&self, at: DateTime<Utc>, days: i64) -> DateTime<Utc> {
        self.first(at.with_timezone(&self.zone).naive_local() + TimeDelta::days(days))
    }

    /// The window of a local date; none when the zone skipped that date.
    pub fn window_of(&self, date: NaiveDate) -> Option<Window> {
        let midnight = date.and_time(chrono::NaiveTime::MIN);
        if self.local_date(self.first(midnight + TimeDelta::hours(12))) != date {
            return None;
        }
        let opens_at = self.first(midnight + TimeDelta::minutes(self.opens));
        let closes_at = self.last(midnight + TimeDelta::minutes(self.closes));
        // Opening inside a skipped hour can leave no length: then the window keeps its nominal one.
        let closes_at =
            if closes_at > opens_at { closes_at } else { opens_at + TimeDelta::minutes(self.closes - self.opens) };
        Some(Window { date, opens_at, closes_at })
    }

    /// Windows that are open at `from` or open later, in order, for the local dates of `days` days ahead.
    pub fn windows_from(&self, from: DateTime<Utc>, days: i64) -> impl Iterator<Item = Window> {
        let today = self.local_date(from);
        // A window that passes midnight may have opened yesterday; a skipped or repeated day adds one more.
        (-2..=days)
            .filter_map(move |offset| self.window_of(today + TimeDelta::days(offset)))
            .filter(move |window| window.closes_at > from)
    }

    /// The window that is open at an instant, else the next one.
    pub fn current_or_next(&self, at: DateTime<Utc>) -> Option<Window> {
        self.windows_from(at, 3).next()
    }

    /// The first instant at which the zone's clocks show `local`.
    fn first(&self, local: NaiveDateTime) -> DateTime<Utc> {
        match self.zone.from_local_datetime(&local) {
            LocalResult::Single(at) | LocalResult::Ambiguous(at, _) => at.with_timezone(&Utc),
            LocalResult::None => self.skipped(local),
        }
    }

    /// The last instant at which the zone's clocks show `local`.
    fn last(&self, local: NaiveDateTime) -> DateTime<Utc> {
        match self.zone.from_local_datetime(&local) {
            LocalResult::Single(at) | LocalResult::Ambiguous(_, at) => at.with_timezone(&Utc),
            LocalResult::None => self.skipped(local),
        }
    }

    /// A local time that never was, read with the offset in force before the gap.
    fn skipped(&self, local: NaiveDateTime) -> DateTime<Utc> {
        // The longest gap on record is a day (Pacific/Apia, 2011); quarters of an hour reach over two.
        let before = (1..=200).find_map(|step| {
            let earlier = local - TimeDelta::minutes(15 * step);
            self.zone.from_local_datetime(&earlier).latest().map(|at| at.with_timezone(&Utc) + (local - earlier))
        });
        before.unwrap_or_else(|| local.and_utc())
    }
}

/// `HH:MM` as minutes after midnight, up to `24:00`.
fn minutes_of_day(text: &str) -> Option<i64> {
    let (hours, minutes) = text.split_once(':')?;
    let number = |text: &str| {
        (text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse::<i64>().ok()).flatten()
    };
    let (hours, minutes) = (number(hours)?, number(minutes)?);
    (minutes < 60 && hours * 60 + minutes <= DAY).then_some(hours * 60 + minutes)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(in super::super) fn platform(opens: &str, closes: &str, zone: &str) -> PlatformSchedule {
        let platform = config::Platform {
            opens: opens.to_owned(),
            closes: closes.to_owned(),
            time_zone: Some(zone.to_owned()),
            spacing_minutes: 15,
            daily_quota: 25,
            cost_cents: 0,
        };
        PlatformSchedule::from_config("here", &platform, "UTC").expect("a schedule")
    }

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().expect("a time")
    }

    fn date(text: &str) -> NaiveDate {
        text.parse().expect("a date")
    }

    #[test]
    fn windows_end_at_24_or_pass_midnight() {
        let until_midnight = platform("16:00", "24:00", "Europe/Madrid");
        let window = until_midnight.window_of(date("2026-11-20")).expect("a window");
        assert_eq!((window.opens_at, window.closes_at), (at("2026-11-20T15:00:00Z"), at("2026-11-20T23:00:00Z")));
        let past = platform("22:00", "02:00", "Europe/Madrid");
        let window = past.current_or_next(at("2026-11-21T00:30:00Z")).expect("a window");
        assert_eq!(window.date, date("2026-11-20"));
        assert!(window.contains(at("2026-11-21T00:59:59Z")) && !window.contains(at("2026-11-21T01:00:00Z")));
    }

    #[test]
    fn a_repeated_hour_opens_early_and_closes_late() {
        // Madrid, 25 October 2026: 03:00 summer time becomes 02:00.
        let window = platform("02:30", "02:45", "Europe/Madrid").window_of(date("2026-10-25")).expect("a window");
        assert_eq!((window.opens_at, window.closes_at), (at("2026-10-25T00:30:00Z"), at("2026-10-25T01:45:00Z")));
    }

    #[test]
    fn a_skipped_hour_is_read_with_the_offset_before_it() {
        // Madrid, 29 March 2026: 02:00 becomes 03:00.
        let within = platform("02:00", "02:30", "Europe/Madrid").window_of(date("2026-03-29")).expect("a window");
        assert_eq!((within.opens_at, within.closes_at), (at("2026-03-29T01:00:00Z"), at("2026-03-29T01:30:00Z")));
        let upside_down = platform("02:30", "03:15", "Europe/Madrid").window_of(date("2026-03-29")).expect("a window");
        assert_eq!(upside_down.opens_at, at("2026-03-29T01:30:00Z"));
        assert_eq!(upside_down.closes_at - upside_down.opens_at, TimeDelta::minutes(45), "the nominal length");
    }

    #[test]
    fn half_an_hour_of_lord_howe_and_the_lost_day_of_apia() {
        // Lord Howe, 4 October 2026: 02:00 becomes 02:30.
        let window = platform("02:15", "05:00", "Australia/Lord_Howe").window_of(date("2026-10-04")).expect("a window");
        assert_eq!((window.opens_at, window.closes_at), (at("2026-10-03T15:45:00Z"), at("2026-10-03T18:00:00Z")));
        let apia = platform("18:00", "23:00", "Pacific/Apia");
        assert_eq!(apia.window_of(date("2011-12-30")), None, "a date that never was has no window");
        let (before, after) = (apia.window_of(date("2011-12-29")), apia.window_of(date("2011-12-31")));
        assert!(before.expect("a window").closes_at < after.expect("a window").opens_at);
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        for text in ["", "7", "7:00", "24:01", "12:60", "-1:00", "ab:cd", "12:00:00"] {
            assert_eq!(minutes_of_day(text), None, "{text}");
        }
        let mut config = config::Publishing::default();
        config.platforms.get_mut("tiktok").expect("a platform").opens = "24:00".to_owned();
        let error = Schedule::from_config(&config).expect_err("refused");
        assert!(error.to_string().contains("publishing.platforms.tiktok.opens"), "{error}");
        config = config::Publishing { time_zone: "Mars/Olympus".to_owned(), ..config::Publishing::default() };
        assert_eq!(
            Schedule::from_config(&config).expect_err("refused"),
            ScheduleError::TimeZone { name: "Mars/Olympus".to_owned() }
        );
    }

    #[test]
    fn the_section_shows_open_and_coming_windows() {
        let schedule = Schedule::from_config(&config::Publishing::default()).expect("a schedule");
        let section = schedule.section("2026-11-20T21:30:00Z".parse().expect("a time"));
        assert_eq!(section.active, ["instagram", "tiktok", "youtube"]);
        assert_eq!(section.closing_soon, ["youtube"]);
        assert_eq!(section.windows[2].minutes_left, 30);
        let section = schedule.section("2026-11-20T12:00:00Z".parse().expect("a time"));
        assert!(!section.any_active && section.closing_soon.is_empty());
        assert_eq!(section.windows[0].opens_at.to_string(), "2026-11-20T18:00:00.000Z");
        assert_eq!(section.windows[0].minutes_left, 0);
    }

    const ZONES: [&str; 14] = [
        "UTC",
        "Europe/Madrid",
        "Europe/London",
        "America/New_York",
        "America/Los_Angeles",
        "America/Havana",
        "America/Santiago",
        "America/Sao_Paulo",
        "Africa/Casablanca",
        "Asia/Kathmandu",
        "Asia/Beirut",
        "Australia/Lord_Howe",
        "Pacific/Apia",
        "Pacific/Chatham",
    ];

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        /// Over every date of four years: each existing date has exactly one window, in order, of sane length.
        #[test]
        fn every_date_has_one_window(zone in 0..ZONES.len(), year in 2008_i32..2036, opens in 0_i64..96, length in 1_i64..=96) {
            let (opens, closes) = (opens * 15, (opens + length) * 15);
            let closes = if closes > DAY { closes - DAY } else { closes };
            let text = |minutes: i64| format!("{:02}:{:02}", minutes / 60, minutes % 60);
            let schedule = platform(&text(opens), &text(closes), ZONES[zone]);
            let nominal = TimeDelta::minutes(schedule.closes - schedule.opens);
            let first = NaiveDate::from_ymd_opt(year, 1, 1).expect("a date");
            let mut previous: Option<Window> = None;
            for offset in 0..(4 * 365) {
                let date = first + TimeDelta::days(offset);
                let Some(window) = schedule.window_of(date) else {
                    prop_assert_eq!(format!("{} {date}", ZONES[zone]), "Pacific/Apia 2011-12-30");
                    continue;
                };
                let length = window.closes_at - window.opens_at;
                prop_assert!(length > TimeDelta::zero());
                // Shorter or longer by no more than two changes of the clock, of an hour at most; Apia left out a day.
                let slack = if ZONES[zone] == "Pacific/Apia" { TimeDelta::hours(25) } else { TimeDelta::hours(2) };
                prop_assert!(length <= nominal + slack && length >= nominal - slack, "{date}: {length}");
                prop_assert_eq!(schedule.current_or_next(window.closes_at - TimeDelta::seconds(1)).is_some(), true);
                if let Some(previous) = previous {
                    prop_assert!(previous.opens_at < window.opens_at, "{date}");
                }
                previous = Some(window);
            }
        }

        /// On every zone there is, at any moment of two centuries: what the section shows agrees with itself and the windows.
        #[test]
        fn the_section_agrees_with_the_windows(
            zone in proptest::sample::select(chrono_tz::TZ_VARIANTS.to_vec()),
            second in -2_208_988_800_i64..4_102_444_800,
            opens in 0..DAY,
            length in 1..=DAY,
        ) {
            let text = |minutes: i64| format!("{:02}:{:02}", minutes / 60, minutes % 60);
            let closes = if opens + length > DAY { opens + length - DAY } else { opens + length };
            let schedule = platform(&text(opens), &text(closes), zone.name());
            let now = DateTime::<Utc>::from_timestamp(second, 0).expect("a time");
            let section = Schedule { platforms: BTreeMap::from([("here".to_owned(), schedule.clone())]) }.section(now.into());
            let view = section.windows.first().expect("there is always a window");
            let (opens_at, closes_at) = (view.opens_at.utc(), view.closes_at.utc());
            prop_assert!(opens_at < closes_at && closes_at > now);
            prop_assert_eq!(view.active, opens_at <= now);
            prop_assert_eq!(section.active.len(), usize::from(view.active));
            prop_assert_eq!(section.any_active, view.active);
            let left = closes_at - now;
            prop_assert_eq!(view.minutes_left, if view.active { left.num_minutes() } else { 0 });
            // A day, and what the largest change of a clock adds to it.
            prop_assert!((0..=2 * DAY + 60).contains(&view.minutes_left));
            prop_assert_eq!(section.closing_soon.len(), usize::from(view.active && left <= TimeDelta::hours(1)));
            // The next one opens within a day and the largest gaps there are.
            prop_assert!(opens_at - now <= TimeDelta::hours(50), "{} from {now}", opens_at);
            // Every opening is on its local date, and none is dropped or doubled.
            let dates: Vec<NaiveDate> = schedule.windows_from(now, 5).map(|window| window.date).collect();
            prop_assert!(dates.windows(2).all(|pair| pair[0] < pair[1]), "{dates:?}");
            let midnight = schedule.next_local_date(now);
            prop_assert!(midnight > now && schedule.local_date(midnight) > schedule.local_date(now));
            let later = schedule.same_time_later(now, 1);
            prop_assert!((later - now - TimeDelta::days(1)).abs() <= TimeDelta::hours(25), "{later}");
        }

        /// What the configuration takes makes windows, and what makes none it refuses.
        #[test]
        fn the_configuration_refuses_what_makes_no_window(
            opens in "[0-2][0-9]:[0-6][0-9]|\\PC{0,6}", closes in "[0-2][0-9]:[0-6][0-9]|\\PC{0,6}",
            zone in "UTC|Europe/(Madrid|Paris|Atlantis)|\\PC{0,8}", spacing_minutes in 0..1_500_u64, daily_quota in 0..3_u32,
            cost_cents in -1..1_i64,
        ) {
            let mut config = config::Config::default();
            let platform = config::Platform { opens, closes, time_zone: Some(zone), spacing_minutes, daily_quota, cost_cents };
            config.publishing.platforms = BTreeMap::from([("here".to_owned(), platform)]);
            let taken = config.check(&["trigger_reconciliation", "rebalance_queue"]).is_empty();
            let made = Schedule::from_config(&config.publishing);
            prop_assert!(!taken || made.is_ok(), "{made:?}");
        }

        /// A moment inside a window is found to be inside, from the moment alone.
        #[test]
        fn a_moment_finds_its_window(zone in 0..ZONES.len(), day in 0_i64..10_000, part in 0.0_f64..1.0) {
            let schedule = platform("22:30", "03:15", ZONES[zone]);
            let date = NaiveDate::from_ymd_opt(2008, 1, 1).expect("a date") + TimeDelta::days(day);
            if let Some(window) = schedule.window_of(date) {
                let length = (window.closes_at - window.opens_at).num_milliseconds() as f64;
                let moment = window.opens_at + TimeDelta::milliseconds((length * part) as i64);
                prop_assert_eq!(schedule.current_or_next(moment), Some(window));
            }
        }
    }
}
