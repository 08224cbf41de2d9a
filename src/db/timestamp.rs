//! A point in time as it is stored: UTC, whole milliseconds, the same value on both databases.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, SubsecRound, TimeDelta, Utc};
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
        Ok(<&str as Decode<Sqlite>>::decode(value)?.parse()?)
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

/// PostgreSQL's binary form: microseconds since 2000. What lies outside of the years 0 to 9999, `infinity` included, is
/// taken as the nearest time inside, so that its text keeps its width.
fn from_postgres(microseconds: i64) -> Timestamp {
    const EPOCH: i64 = 946_684_800_000; // 2000-01-01 in Unix milliseconds
    const FIRST: i64 = -62_167_219_200_000; // 0000-01-01
    const LAST: i64 = 253_402_300_799_999; // 9999-12-31T23:59:59.999
    let milliseconds = microseconds.div_euclid(1_000).saturating_add(EPOCH).clamp(FIRST, LAST);
    Timestamp(DateTime::from_timestamp_millis(milliseconds).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
