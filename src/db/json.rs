//! A JSON column, readable whatever another program wrote into it.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArgumentBuffer, PgTypeInfo, PgValueFormat, PgValueRef, Postgres};
use sqlx::sqlite::{Sqlite, SqliteArgumentsBuffer, SqliteTypeInfo, SqliteValueRef};
use sqlx::{Decode, Encode, Type, TypeInfo, ValueRef};

/// JSON: `JSONB` on PostgreSQL, checked text on SQLite. Both take JSON that serde does not (numbers beyond `f64`, deeper
/// nesting, halves of surrogate pairs; SQLite also bytes that are no UTF-8): it is read as its own text, with U+FFFD
/// for bytes that are none, so that one such row hides no other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Json<T>(pub T);

fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<Json<T>, BoxDynError> {
    serde_json::from_slice(bytes).map(Json).or_else(|cause| {
        let text = String::from_utf8_lossy(bytes);
        let mended = serde_json::from_str(&text);
        let read = mended.or_else(|_| serde_json::from_value(Value::String(text.into_owned())));
        read.map(Json).map_err(|_| cause.into())
    })
}

impl<T> Type<Sqlite> for Json<T> {
    fn type_info() -> SqliteTypeInfo {
        <str as Type<Sqlite>>::type_info()
    }
    fn compatible(column: &SqliteTypeInfo) -> bool {
        <str as Type<Sqlite>>::compatible(column)
    }
}

impl<T: Serialize> Encode<'_, Sqlite> for Json<T> {
    fn encode_by_ref(&self, buffer: &mut SqliteArgumentsBuffer) -> Result<IsNull, BoxDynError> {
        Encode::<Sqlite>::encode_by_ref(&sqlx::types::Json(&self.0), buffer)
    }
}

impl<'r, T: DeserializeOwned> Decode<'r, Sqlite> for Json<T> {
    fn decode(value: SqliteValueRef<'r>) -> Result<Self, BoxDynError> {
        read(Decode::<Sqlite>::decode(value)?)
    }
}

impl<T> Type<Postgres> for Json<T> {
    fn type_info() -> PgTypeInfo {
        <Value as Type<Postgres>>::type_info()
    }
    fn compatible(column: &PgTypeInfo) -> bool {
        <Value as Type<Postgres>>::compatible(column)
    }
}

impl<T: Serialize> Encode<'_, Postgres> for Json<T> {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        Encode::<Postgres>::encode_by_ref(&sqlx::types::Json(&self.0), buffer)
    }
}

impl<'r, T: DeserializeOwned> Decode<'r, Postgres> for Json<T> {
    fn decode(value: PgValueRef<'r>) -> Result<Self, BoxDynError> {
        // Binary JSONB is its text after a byte that names the format's version, of which there is one.
        let is_tagged = value.format() == PgValueFormat::Binary && value.type_info().name() == "JSONB";
        read(&value.as_bytes()?[usize::from(is_tagged)..])
    }
}

/// Whether a text in `value`, or a name, holds the one character that PostgreSQL cannot store.
pub fn has_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(items) => items.iter().any(has_nul),
        Value::Object(fields) => fields.iter().any(|(name, value)| name.contains('\0') || has_nul(value)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_serde_does_not_take_is_read_as_its_text() {
        let value = |bytes: &[u8]| read::<Value>(bytes).expect("a value").0;
        assert_eq!(value(br#"{"a":[1,2.5]}"#), serde_json::json!({ "a": [1, 2.5] }));
        assert_eq!(value(b"{\"a\":\"caf\xe9\"}"), serde_json::json!({ "a": "caf\u{fffd}" }));
        assert_eq!(value(b"1e999"), "1e999");
        assert_eq!(value(br#""\ud800""#), r#""\ud800""#);
        let deep = format!("{}{}", "[".repeat(500), "]".repeat(500));
        assert_eq!(value(deep.as_bytes()), deep.as_str());
        read::<Vec<i64>>(b"[\"x\"]").expect_err("what we wrote ourselves is of its type");
    }
}
