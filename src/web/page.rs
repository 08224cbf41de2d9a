//! Lists a page at a time.
//!
//! A list reads [`Limit::fetch`] rows behind the [`Cursor`]'s key and hands them to [`Page::cut`], which answers
//! `limit` of them and, if there was one more, the cursor for the rest.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};

/// The longest cursor that is looked at: ours are far shorter.
const LONGEST_CURSOR: usize = 1024;

/// The parameter `limit`: how many items a page holds, 1 to 500; 50 if it is not given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit(u16);

impl Limit {
    const MOST: u16 = 500;

    /// The number of rows to read: one more than the page holds, to know whether there is a next page.
    pub fn fetch(self) -> i64 {
        i64::from(self.0) + 1
    }
}

impl Default for Limit {
    fn default() -> Self {
        Self(50)
    }
}

impl<'de> Deserialize<'de> for Limit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match text.parse() {
            Ok(limit @ 1..=Self::MOST) => Ok(Self(limit)),
            _ => Err(D::Error::custom(format_args!("`{text}` is not a whole number from 1 to {}", Self::MOST))),
        }
    }
}

impl utoipa::PartialSchema for Limit {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::Integer)
            .minimum(Some(1))
            .maximum(Some(Self::MOST))
            .default(Some(50.into()))
            .into()
    }
}
impl ToSchema for Limit {}

/// The parameter `cursor`: where the page begins, as the page before it said. `K` is the key of the last item seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor<K>(pub K);

impl<K: Serialize> Cursor<K> {
    /// The cursor as text.
    pub fn encode(&self) -> String {
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(&self.0).unwrap_or_default())
    }
}

impl<'de, K: DeserializeOwned> Deserialize<'de> for Cursor<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let refused = || D::Error::custom("is not a cursor of this list; take `next_cursor` of the page before");
        if text.len() > LONGEST_CURSOR {
            return Err(refused());
        }
        let key = URL_SAFE_NO_PAD.decode(&text).map_err(|_| refused())?;
        serde_json::from_slice(&key).map(Self).map_err(|_| refused())
    }
}

impl<K> utoipa::PartialSchema for Cursor<K> {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new().schema_type(Type::String).max_length(Some(LONGEST_CURSOR)).into()
    }
}
impl<K> ToSchema for Cursor<K> {
    fn name() -> std::borrow::Cow<'static, str> {
        "Cursor".into()
    }
}

/// One page of a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Page<T> {
    /// The items.
    pub items: Vec<T>,
    /// The `cursor` of the next page; `null` on the last.
    pub next_cursor: Option<String>,
}

impl<T> Page<T> {
    /// Cuts `rows`, read with [`Limit::fetch`], down to the page; `key` is where the next one begins.
    pub fn cut<K: Serialize + fmt::Debug>(mut rows: Vec<T>, limit: Limit, key: impl Fn(&T) -> K) -> Self {
        let most = usize::from(limit.0);
        let more = rows.len() > most;
        rows.truncate(most);
        let next_cursor = if more { rows.last().map(|last| Cursor(key(last)).encode()) } else { None };
        Self { items: rows, next_cursor }
    }

    /// The same page with every item turned into what the client sees.
    pub fn map<U>(self, view: impl FnMut(T) -> U) -> Page<U> {
        Page { items: self.items.into_iter().map(view).collect(), next_cursor: self.next_cursor }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::de::IntoDeserializer;
    use serde::de::value::Error as ValueError;

    use super::*;

    fn read<K: DeserializeOwned>(text: &str) -> Result<Cursor<K>, ValueError> {
        Cursor::deserialize(text.into_deserializer())
    }

    proptest! {
        #[test]
        fn walking_by_cursor_sees_every_row_once(rows in 0_i64..300, limit in 1_u16..=60) {
            let limit = Limit(limit);
            let (mut seen, mut after) = (Vec::new(), 0);
            loop {
                let rows: Vec<i64> = (after + 1..=rows).take(limit.fetch() as usize).collect();
                let page = Page::cut(rows, limit, |row| *row);
                seen.extend(page.items);
                let Some(cursor) = page.next_cursor else { break };
                after = read::<i64>(&cursor).expect("our own cursor").0;
            }
            prop_assert_eq!(seen, (1..=rows).collect::<Vec<_>>());
        }

        #[test]
        fn a_made_up_cursor_is_refused_or_read_but_never_panics(text in ".{0,40}") {
            let _ = read::<(i64, String)>(&text);
        }
    }
}
