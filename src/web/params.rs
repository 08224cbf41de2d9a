//! The query string.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use serde::de::DeserializeOwned;

use super::explain::explain;
use crate::problem::Problem;

/// The parameters of the query string; 422 names the one that is unknown or does not fit.
#[derive(Debug, Clone)]
pub struct Params<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Params<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        parse(parts.uri.query().unwrap_or_default()).map(Self)
    }
}

fn parse<T: DeserializeOwned>(query: &str) -> Result<T, Problem> {
    let pairs: Vec<(String, String)> = serde_urlencoded::from_str(query).unwrap_or_default();
    if let Some((name, _)) = pairs.iter().find(|(name, value)| name.contains('\0') || value.contains('\0')) {
        return Err(Problem::refused(&name.replace('\0', ""), "contains a NUL character"));
    }
    let deserializer = serde_urlencoded::Deserializer::new(form_urlencoded::parse(query.as_bytes()));
    serde_path_to_error::deserialize(deserializer)
        .map_err(|error| Problem::invalid(vec![explain(&error.path().to_string(), &error.inner().to_string())]))
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::db::Timestamp;
    use crate::web::{Cursor, Limit};

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Listing {
        #[serde(default)]
        limit: Limit,
        cursor: Option<Cursor<i64>>,
        since: Option<Timestamp>,
        status: Option<String>,
    }

    #[test]
    fn reads_what_fits() {
        let cursor = Cursor(7_i64).encode();
        let query = format!("cursor={cursor}&since=2026-11-20T18:30:00Z&status=a%20b");
        let listing: Listing = parse(&query).expect("taken");
        assert_eq!(listing.limit, Limit::default());
        assert_eq!(listing.cursor, Some(Cursor(7)));
        assert_eq!(listing.status.as_deref(), Some("a b"));
        assert!(listing.since.is_some());
    }

    #[test]
    fn names_the_parameter_that_does_not() {
        let cases = [
            ("limt=5", "limt", "did you mean `limit`?"),
            ("limit=0", "limit", "from 1 to 500"),
            ("limit=501", "limit", "from 1 to 500"),
            ("limit=", "limit", "from 1 to 500"),
            ("limit=1&limit=2", "limit", "more than once"),
            ("cursor=zzz!", "cursor", "not a cursor"),
            ("since=yesterday", "since", "RFC 3339"),
            ("status=%00", "status", "NUL"),
        ];
        for (query, field, message) in cases {
            let problem = parse::<Listing>(query).expect_err(query);
            assert_eq!((problem.status, problem.errors[0].field.as_str()), (422, field), "{query}");
            assert!(problem.errors[0].message.contains(message), "{query}: {}", problem.errors[0].message);
        }
    }
}
