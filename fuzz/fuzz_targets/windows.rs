//! Any platform and any moment: a schedule that is refused, or windows that agree with each other.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use showrunner::config::{Platform, Publishing};
use showrunner::db::Timestamp;
use showrunner::planes::publishing::Schedule;

fuzz_target!(|input: (&str, &str, &str, u64, u32, i64)| {
    let (opens, closes, zone, spacing_minutes, daily_quota, millisecond) = input;
    // The years that RFC 3339 can write.
    let millisecond = millisecond.rem_euclid(253_402_300_800_000);
    let platform = Platform {
        opens: opens.to_owned(),
        closes: closes.to_owned(),
        time_zone: Some(zone.to_owned()),
        spacing_minutes,
        daily_quota,
        cost_cents: 0,
    };
    let config = Publishing { platforms: BTreeMap::from([("x".to_owned(), platform)]), ..Publishing::default() };
    let Ok(schedule) = Schedule::from_config(&config) else { return };
    let now: Timestamp = serde_json::from_value(serde_json::json!("1970-01-01T00:00:00.000Z")).expect("a time");
    let now = now.after(std::time::Duration::from_millis(millisecond.unsigned_abs()));
    let section = schedule.section(now);
    for window in &section.windows {
        assert!(window.opens_at < window.closes_at && window.closes_at > now);
        assert_eq!(window.active, window.opens_at <= now);
    }
});
