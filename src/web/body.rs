//! A JSON request body.

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, StatusCode, header};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::explain::explain;
use crate::problem::Problem;

/// The request's body, read as JSON. 415 for another content type, 413 beyond the body limit, 400 for what is no
/// JSON, 422 naming the field for what does not fit `T`. Text with a NUL character is refused: PostgreSQL cannot
/// store it.
#[derive(Debug, Clone)]
pub struct Body<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        if !is_json(request.headers()) {
            return Err(Problem::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported-media-type",
                "Send the body as JSON, with the header `Content-Type: application/json`.",
            ));
        }
        if request.headers().get_all(header::CONTENT_ENCODING).iter().any(|encoding| encoding != "identity") {
            return Err(Problem::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported-encoding",
                "Send the body as it is, without a `Content-Encoding`.",
            ));
        }
        let bytes = Bytes::from_request(request, state).await.map_err(|rejection| match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => too_large(),
            _ => malformed("the body ended early"),
        })?;
        parse(&bytes).map(Self)
    }
}

/// 413: the body is longer than `http.body_limit_bytes`.
pub fn too_large() -> Problem {
    Problem::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        "too-large",
        "The body is larger than this service takes; the limit is `http.body_limit_bytes` of its configuration.",
    )
}

fn malformed(cause: impl std::fmt::Display) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "malformed", format!("The body is not valid JSON: {cause}."))
}

fn is_json(headers: &HeaderMap) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"))
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    if bytes.is_empty() {
        return Err(malformed("it is empty"));
    }
    // A NUL can only come in as this escape; JSON forbids the raw character.
    if bytes.windows(6).any(|window| window == br"\u0000") {
        let value: Value = serde_json::from_slice(bytes).map_err(malformed)?;
        if let Some(field) = with_nul(&value, "") {
            return Err(Problem::refused(&field, "contains a NUL character, which cannot be stored"));
        }
    }
    // Every body is an object; serde would also take the fields' values in a row, which nobody means.
    if bytes.trim_ascii_start().first() == Some(&b'[') {
        return Err(Problem::refused("body", "is a list; send an object with named fields"));
    }
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        let cause = error.into_inner();
        match cause.classify() {
            serde_json::error::Category::Data => Problem::invalid(vec![explain(&path, &cause.to_string())]),
            _ => malformed(cause),
        }
    })?;
    deserializer.end().map_err(malformed)?;
    Ok(value)
}

/// The path of the first text that contains a NUL.
fn with_nul(value: &Value, path: &str) -> Option<String> {
    let named = || if path.is_empty() { "body".to_owned() } else { path.to_owned() };
    match value {
        Value::String(text) => text.contains('\0').then(named),
        Value::Array(items) => {
            items.iter().enumerate().find_map(|(index, item)| with_nul(item, &format!("{path}[{index}]")))
        }
        Value::Object(fields) => fields.iter().find_map(|(name, item)| {
            if name.contains('\0') {
                return Some(named());
            }
            with_nul(item, &if path.is_empty() { name.clone() } else { format!("{path}.{name}") })
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Window {
        #[allow(dead_code)]
        opens: i64,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct New {
        title: String,
        #[serde(default)]
        #[allow(dead_code)]
        windows: Vec<Window>,
    }

    fn refused(text: &str) -> Problem {
        parse::<New>(text.as_bytes()).expect_err("refused")
    }

    #[test]
    fn what_is_no_json_is_malformed() {
        for text in ["", "{", "{\"title\":\"a\"} x", "{\"title\":tru", "\u{0}"] {
            assert_eq!(refused(text).status, 400, "{text:?}");
        }
    }

    #[test]
    fn what_does_not_fit_names_the_field() {
        let cases = [
            (r#"{}"#, "title", "is required"),
            (r#"{"titel":"a"}"#, "titel", "did you mean `title`?"),
            (r#"{"title":"a","title":"b"}"#, "title", "more than once"),
            (r#"{"title":7}"#, "title", "takes a text, not the number 7"),
            (
                r#"{"title":"a","windows":[{"opens":1},{"opens":"x"}]}"#,
                "windows[1].opens",
                "takes a whole number, not the text",
            ),
            (r#"{"title":"a","windows":[{"opns":1}]}"#, "windows[0].opns", "did you mean `opens`?"),
            (r#"{"title":"a\u0000"}"#, "title", "NUL"),
            ("7", "body", "takes an object"),
            ("null", "body", "takes an object, not null"),
        ];
        for (text, field, message) in cases {
            let problem = refused(text);
            assert_eq!(problem.status, 422, "{text}");
            assert_eq!(problem.errors[0].field, field, "{text}");
            assert!(problem.errors[0].message.contains(message), "{text}: {}", problem.errors[0].message);
        }
    }

    #[test]
    fn an_escaped_backslash_before_u0000_is_no_nul() {
        let new: New = parse(br#"{"title":"\\u0000"}"#).expect("taken");
        assert_eq!(new.title, "\\u0000");
    }
}
