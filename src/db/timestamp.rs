//! A point in time as it is stored: UTC, whole milliseconds, the same value on both databases.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use chrono::{DateTime, NaiveDate, SecondsFormat, SubsecRound, TimeDelta, Utc};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArgumentBuffer, PgTypeInfo, PgValueFormat, PgValueRef, Postgres};
use sqlx::sqlite::{Sqlite, SqliteArgumentsBuffer, SqliteTypeInfo, SqliteValueRef};
use sqlx::{Decode, Encode, Type};

/// UTC, truncated to milliseconds so that a value reads back equal from both databases.
/// Written `2026-11-20T18:30:00.000Z` in SQLite and JSON (text order is time order), `TIMESTAMPTZ` in PostgreSQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(DateTime<Utc>);

impl Timestamp {
    /// Truncates to milliseconds.
    pub fn new(at: DateTime<Utc>) -> Self {
        Self(at.trunc_subsecs(3))
    }
    /// As chrono's type.
    pub fn utc(self) -> DateTime<Utc> {
        self.0
    }
    /// Later by `duration`; at the end of representable time it stays there.
    pub fn after(self, duration: Duration) -> Self {
        let delta = TimeDelta::from_std(duration).unwrap_or(TimeDelta::MAX);
        Self::new(self.0.checked_add_signed(delta).unwrap_or(DateTime::<Utc>::MAX_UTC))
    }
    /// Earlier by `duration`.
    pub fn before(self, duration: Duration) -> Self {
        let delta = TimeDelta::from_std(duration).unwrap_or(TimeDelta::MAX);
        Self::new(self.0.checked_sub_signed(delta).unwrap_or(DateTime::<Utc>::MIN_UTC))
    }
    /// The time from `earlier` to `self`; zero if it lies the other way.
    pub fn since(self, earlier: Self) -> Duration {
        (self.0 - earlier.0).to_std().unwrap_or_default()
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.to_rfc3339_opts(SecondsFormat::Millis, true))
    }
}

impl FromStr for Timestamp {
    type Err = chrono::ParseError;
    /// Takes any RFC 3339 time, with any offset.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        DateTime::parse_from_rfc3339(text).map(|at| Self::new(at.with_timezone(&Utc)))
    }
}

impl From<DateTime<Utc>> for Timestamp {
    fn from(at: DateTime<Utc>) -> Self {
        Self::new(at)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|_| {
            serde::de::Error::custom(format!("`{text}` is not an RFC 3339 time such as 2026-11-20T18:30:00Z"))
        })
    }
}

impl utoipa::PartialSchema for Timestamp {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        utoipa::openapi::ObjectBuilder::new()
            .schema_type(utoipa::openapi::schema::Type::String)
            .format(Some(utoipa::openapi::SchemaFormat::KnownFormat(utoipa::openapi::KnownFormat::DateTime)))
            .into()
    }
}
impl utoipa::ToSchema for Timestamp {}

impl Type<Sqlite> for Timestamp {
    fn type_info() -> SqliteTypeInfo {
        <String as Type<Sqlite>>::type_info()
    }
    fn compatible(ty: &SqliteTypeInfo) -> bool {
        <String as Type<Sqlite>>::compatible(ty)
    }
}
impl Encode<'_, Sqlite> for Timestamp {
    fn encode_by_ref(&self, buffer: &mut SqliteArgumentsBuffer) -> Result<IsNull, BoxDynError> {
        Encode::<Sqlite>::encode(self.to_string(), buffer)
    }
}
impl Decode<'_, Sqlite> for Timestamp {
    fn decode(value: SqliteValueRef<'_>) -> Result<Self, BoxDynError> {
        let text = <&str as Decode<Sqlite>>::decode(value)?;
        match text.parse() {
            Ok(at) => Ok(at),
            Err(error) => from_sqlite(text).ok_or_else(|| error.into()),
        }
    }
}
impl Type<Postgres> for Timestamp {
    fn type_info() -> PgTypeInfo {
        <DateTime<Utc> as Type<Postgres>>::type_info()
    }
}
impl Encode<'_, Postgres> for Timestamp {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        Encode::<Postgres>::encode_by_ref(&self.0, buffer)
    }
}
impl Decode<'_, Postgres> for Timestamp {
    fn decode(value: PgValueRef<'_>) -> Result<Self, BoxDynError> {
        match value.format() {
            // Not by sqlx's own reading, which panics over `infinity`: other programs write rows too.
            PgValueFormat::Binary => Ok(from_postgres(<i64 as Decode<Postgres>>::decode(value)?)),
            PgValueFormat::Text => Ok(Self::new(<DateTime<Utc> as Decode<Postgres>>::decode(value)?)),
        }
    }
}

const FIRST: i64 = -62_167_219_200_000; // 0000-01-01 in Unix milliseconds
const LAST: i64 = 253_402_300_799_999; // 9999-12-31T23:59:59.999

/// What lies outside of the years 0 to 9999 is taken as the nearest time inside, so that its text keeps its width.
fn nearest(milliseconds: i64) -> Timestamp {
    Timestamp(DateTime::from_timestamp_millis(milliseconds.clamp(FIRST, LAST)).unwrap_or_default())
}

/// PostgreSQL's binary form: microseconds since 2000, or `infinity`.
fn from_postgres(microseconds: i64) -> Timestamp {
    const EPOCH: i64 = 946_684_800_000; // 2000-01-01 in Unix milliseconds
    nearest(microseconds.div_euclid(1_000).saturating_add(EPOCH))
}

/// What SQLite's functions take for a time though no calendar has it: the 31st of any month, the hour 24, years before
/// the first. Other programs may have written such a row. Its days and hours are counted on, as SQLite counts them.
fn from_sqlite(text: &str) -> Option<Timestamp> {
    if text.starts_with('-') {
        return Some(nearest(i64::MIN));
    }
    let number = |from: usize, to: usize| text.get(from..to)?.parse::<u32>().ok();
    let month = NaiveDate::from_ymd_opt(text.get(..4)?.parse().ok()?, number(5, 7)?, 1)?;
    let minutes =
        (i64::from(number(8, 10)?) - 1) * 1_440 + i64::from(number(11, 13)?) * 60 + i64::from(number(14, 16)?);
    let milliseconds = i64::from(number(17, 19)?) * 1_000 + i64::from(number(20, 23)?);
    let first = month.and_time(chrono::NaiveTime::MIN).and_utc().timestamp_millis();
    Some(nearest(first + minutes * 60_000 + milliseconds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::{Db, Options};

    #[test]
    fn text_is_fixed_width_and_reads_back_equal() {
        let at: Timestamp = "2026-11-20T19:30:00.123456+01:00".parse().expect("a time");
        assert_eq!(at.to_string(), "2026-11-20T18:30:00.123Z");
        assert_eq!(at.to_string().parse::<Timestamp>().expect("a time"), at);
    }

    #[test]
    fn what_postgresql_calls_infinity_is_the_end_of_the_last_year() {
        assert_eq!(from_postgres(i64::MAX).to_string(), "9999-12-31T23:59:59.999Z");
        assert_eq!(from_postgres(i64::MIN).to_string(), "0000-01-01T00:00:00.000Z");
        assert_eq!(from_postgres(0).to_string(), "2000-01-01T00:00:00.000Z");
        assert_eq!(from_postgres(-1).to_string(), "1999-12-31T23:59:59.999Z");
        assert_eq!(from_postgres(848_514_600_123_456).to_string(), "2026-11-20T18:30:00.123Z");
    }

    /// What SQLite reads from a text that it takes for a time, and what its own functions make of it.
    async fn on_sqlite(db: &Db, text: String) -> Option<(Timestamp, String)> {
        db.query(
            "SELECT $1, strftime('%Y-%m-%dT%H:%M:%fZ', $1, '+0 days')
             WHERE strftime('%Y-%m-%dT%H:%M:%fZ', $1, '+0 days') IS NOT NULL",
        )
        .bind(text)
        .optional()
        .await
        .expect("what SQLite takes can be read")
    }

    async fn sqlite() -> Db {
        Db::open(&Options::new("sqlite::memory:"), crate::clock::ManualClock::at(DateTime::UNIX_EPOCH))
            .await
            .expect("open")
    }

    #[tokio::test]
    async fn a_day_or_hour_that_no_calendar_has_is_counted_on_as_sqlite_does() {
        let db = sqlite().await;
        for (text, read) in [
            ("2026-02-31T10:20:30.456Z", "2026-03-03T10:20:30.456Z"),
            ("2026-11-31T00:00:00.000Z", "2026-12-01T00:00:00.000Z"),
            ("2024-02-30T00:00:00.000Z", "2024-03-01T00:00:00.000Z"),
            ("2026-12-31T24:59:59.999Z", "2027-01-01T00:59:59.999Z"),
            ("-2026-01-01T00:00:00.000Z", "0000-01-01T00:00:00.000Z"),
        ] {
            let (at, _) = on_sqlite(&db, text.to_owned()).await.expect("SQLite takes it");
            assert_eq!(at.to_string(), read, "{text}");
        }
        assert_eq!(from_sqlite("nonsense"), None);
        assert_eq!(from_sqlite("2026-13-01T00:00:00.000Z"), None);
    }

    #[test]
    fn whatever_sqlite_takes_is_read_as_its_own_functions_count_it() {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let db = runtime.block_on(sqlite());
        let parts = (0..10_000_u32, 0..14_u32, 0..33_u32, 0..26_u32, 0..61_u32, 0..61_u32, 0..1_000_u32);
        proptest::proptest!(|((year, month, day, hour, minute, second, milliseconds) in parts)| {
            let text = format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milliseconds:03}Z");
            if let Some((at, counted)) = runtime.block_on(on_sqlite(&db, text.clone())) {
                proptest::prop_assert_eq!(at.to_string(), counted, "{}", text);
            }
        });
    }
}
