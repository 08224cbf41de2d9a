//! What the storage back ends hold, handed through as it comes.

use std::ops::Range;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use object_store::ObjectMeta;
use object_store::path::Path as Key;
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::problem::Problem;
use crate::storage::{Store, Stores, key_of};
use crate::web::{Params, Path};

/// The route of what is stored.
pub fn routes<S: Clone + Send + Sync + 'static>(stores: Stores) -> OpenApiRouter<S> {
    OpenApiRouter::new().routes(routes!(content)).with_state(stores)
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct StorageQuery {
    /// The id of the back end; the default one if it is not given.
    backend: Option<String>,
}

/// What a storage back end holds at a key, or a range of it. Browsers save it and do not show it: what others put
/// there must not run here.
#[utoipa::path(get, path = "/api/storage/{*path}", operation_id = "getStored", tag = "storage",
    params(StorageQuery, ("path" = String, Path, description = "The key", example = "runs/12/output.json")),
    responses(
        (status = 200, description = "All of it", body = String, content_type = "application/octet-stream"),
        (status = 206, description = "The range of it that `Range` asked for", body = String, content_type = "application/octet-stream"),
        (status = 304, description = "It is still what `If-None-Match` names"),
        (status = 404, description = "There is no such key or back end", body = Problem, content_type = "application/problem+json"),
        (status = 416, description = "The range lies outside", body = Problem, content_type = "application/problem+json"),
        (status = 502, description = "The back end does not answer as it should", body = Problem, content_type = "application/problem+json")))]
async fn content(
    State(stores): State<Stores>,
    Path(path): Path<String>,
    Params(query): Params<StorageQuery>,
    request: Request,
) -> Result<Response, Problem> {
    let key = key_of(&path)?;
    let store = stores.get(query.backend.as_deref())?;
    let headers = request.headers();
    let is_head = request.method() == Method::HEAD;
    // Whoever wants all of it is spared a question; everybody else's answer depends on size and tag.
    if !is_head && !headers.contains_key(header::RANGE) && !headers.contains_key(header::IF_NONE_MATCH) {
        let (meta, pieces) = store.read(&key, None).await?;
        let tag = tag_of(meta.e_tag.as_deref());
        return Ok(answer(StatusCode::OK, &path, tag, meta.size, Body::from_stream(pieces)));
    }
    let meta = store.head(&key).await?;
    let tag = tag_of(meta.e_tag.as_deref());
    if is_unchanged(headers, tag.as_ref()) {
        let mut response = answer(StatusCode::NOT_MODIFIED, &path, tag, meta.size, Body::empty());
        response.headers_mut().remove(header::CONTENT_LENGTH);
        return Ok(response);
    }
    let wanted = match range_wanted(headers, tag.as_ref()) {
        None => None,
        Some(wanted) => match wanted.within(meta.size) {
            Some(range) => Some(range),
            None => return Ok(unsatisfiable(meta.size)),
        },
    };
    let (status, length) = match &wanted {
        Some(range) => (StatusCode::PARTIAL_CONTENT, range.end - range.start),
        None => (StatusCode::OK, meta.size),
    };
    let body = if is_head { Body::empty() } else { read(store, &key, wanted.clone(), &meta).await? };
    let mut response = answer(status, &path, tag, length, body);
    if let Some(range) = wanted {
        let text = format!("bytes {}-{}/{}", range.start, range.end - 1, meta.size);
        response.headers_mut().insert(header::CONTENT_RANGE, ascii(&text));
    }
    Ok(response)
}

/// The body, if it is still the one whose size and tag were told.
async fn read(store: &Store, key: &Key, range: Option<Range<u64>>, told: &ObjectMeta) -> Result<Body, Problem> {
    let (meta, pieces) = store.read(key, range).await?;
    if (&meta.e_tag, meta.size) != (&told.e_tag, told.size) {
        return Err(Problem::unavailable("The value changed while it was read; ask again."));
    }
    Ok(Body::from_stream(pieces))
}

fn answer(status: StatusCode, path: &str, tag: Option<HeaderValue>, length: u64, body: Body) -> Response {
    let mut response = (status, body).into_response();
    let name = path.rsplit('/').next().unwrap_or_default();
    let fixed: [(HeaderName, HeaderValue); 6] = [
        (header::CONTENT_TYPE, ascii(content_type(name))),
        (header::CONTENT_DISPOSITION, ascii(&disposition(name))),
        (header::CONTENT_LENGTH, HeaderValue::from(length)),
        (header::ACCEPT_RANGES, HeaderValue::from_static("bytes")),
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; sandbox")),
        // The answer is for whoever holds the token, and asked again by tag.
        (header::CACHE_CONTROL, HeaderValue::from_static("private, no-cache")),
    ];
    response.headers_mut().extend(fixed);
    if let Some(tag) = tag {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}

fn ascii(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(""))
}

/// By the name's ending; never one that a browser would run.
fn content_type(name: &str) -> &'static str {
    let ending = name.rsplit_once('.').map(|(_, ending)| ending.to_ascii_lowercase()).unwrap_or_default();
    match ending.as_str() {
        "json" => "application/json",
        "txt" | "log" | "csv" | "md" => "text/plain; charset=utf-8",
        "mp4" => "video/mp4",
        "webm" => "video/webm",
        "mp3" => "audio/mpeg",
        "wav" => "audio/wav",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "webp" => "image/webp",
        "gif" => "image/gif",
        "pdf" => "application/pdf",
        "zip" => "application/zip",
        _ => "application/octet-stream",
    }
}

/// `attachment` under the key's last part, in ASCII and as RFC 8187 writes any other.
fn disposition(name: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let fallback: String = name.chars().map(|c| if plain(c) { c } else { '_' }).collect();
    let encoded: String = name
        .bytes()
        .map(|byte| if plain(byte as char) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect();
    format!("attachment; filename=\"{fallback}\"; filename*=UTF-8''{encoded}")
}

/// The tag as HTTP writes it; folders give theirs without quotes.
fn tag_of(tag: Option<&str>) -> Option<HeaderValue> {
    let tag = tag.filter(|tag| !tag.is_empty())?;
    let is_quoted = tag.ends_with('"') && (tag.starts_with('"') || tag.starts_with("W/\""));
    let text = if is_quoted { tag.to_owned() } else { format!("\"{}\"", tag.replace('"', "")) };
    HeaderValue::from_str(&text).ok()
}

fn is_unchanged(headers: &HeaderMap, tag: Option<&HeaderValue>) -> bool {
    let Some(tag) = tag.and_then(|tag| tag.to_str().ok()) else { return false };
    let weak = |text: &str| text.trim().trim_start_matches("W/").to_owned();
    headers
        .get_all(header::IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .any(|value| value.trim() == "*" || value.split(',').any(|known| weak(known) == weak(tag)))
}

/// What `Range` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    From(u64, Option<u64>),
    Last(u64),
}

impl Wanted {
    /// The bytes of a value of `size`; none where it holds none of them.
    fn within(self, size: u64) -> Option<Range<u64>> {
        let range = match self {
            Self::From(first, last) => first..last.map_or(size, |last| last.saturating_add(1).min(size)),
            Self::Last(count) => size.saturating_sub(count)..size,
        };
        (range.start < range.end).then_some(range)
    }
}

/// One range of bytes. Anything else (several, other units, nonsense) is as good as no `Range` (RFC 9110, 14.2), and so
/// is one of a value that is no longer there (`If-Range`).
fn range_wanted(headers: &HeaderMap, tag: Option<&HeaderValue>) -> Option<Wanted> {
    if headers.get(header::IF_RANGE).is_some_and(|known| Some(known) != tag) {
        return None;
    }
    let text = headers.get(header::RANGE)?.to_str().ok()?;
    let (first, last) = text.trim().strip_prefix("bytes=")?.trim().split_once('-')?;
    let number = |text: &str| {
        let text = text.trim();
        text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<u64>().ok()).flatten()
    };
    match (first.trim().is_empty(), last.trim().is_empty()) {
        (true, true) => None,
        (true, false) => Some(Wanted::Last(number(last)?)),
        (false, true) => Some(Wanted::From(number(first)?, None)),
        (false, false) => Some((number(first)?, number(last)?))
            .filter(|(first, last)| first <= last)
            .map(|(first, last)| Wanted::From(first, Some(last))),
    }
}

fn unsatisfiable(size: u64) -> Response {
    let detail = format!("The range lies outside of the value's {size} bytes.");
    let mut response = Problem::new(StatusCode::RANGE_NOT_SATISFIABLE, "range-not-satisfiable", detail).into_response();
    response.headers_mut().insert(header::CONTENT_RANGE, ascii(&format!("bytes */{size}")));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(range: &'static str) -> Option<Wanted> {
        range_wanted(&HeaderMap::from_iter([(header::RANGE, HeaderValue::from_static(range))]), None)
    }

    #[test]
    fn a_range_is_one_of_bytes_or_none() {
        assert_eq!(wanted("bytes=0-9").and_then(|range| range.within(100)), Some(0..10));
        assert_eq!(wanted("bytes=90-200").and_then(|range| range.within(100)), Some(90..100));
        assert_eq!(wanted("bytes=90-").and_then(|range| range.within(100)), Some(90..100));
        assert_eq!(wanted("bytes=-10").and_then(|range| range.within(100)), Some(90..100));
        assert_eq!(wanted("bytes=-1000").and_then(|range| range.within(100)), Some(0..100));
        assert_eq!(wanted("bytes=0-18446744073709551615").and_then(|range| range.within(100)), Some(0..100));
        for outside in ["bytes=100-", "bytes=100-200", "bytes=-0"] {
            assert_eq!(wanted(outside).expect("a range").within(100), None, "{outside}");
        }
        assert_eq!(wanted("bytes=0-").expect("a range").within(0), None);
        for none in [
            "bytes=",
            "bytes=-",
            "bytes=5-4",
            "bytes=0-1,5-6",
            "lines=1-2",
            "bytes=+1-2",
            "bytes=1--2",
            "bytes=99999999999999999999-",
        ] {
            assert_eq!(wanted(none), None, "{none}");
        }
    }

    #[test]
    fn no_name_breaks_out_of_its_header() {
        assert_eq!(
            disposition("a\"; x=\"ö.txt"),
            "attachment; filename=\"a___x___.txt\"; filename*=UTF-8''a%22%3B%20x%3D%22%C3%B6.txt"
        );
        assert_eq!(content_type("a.HTML"), "application/octet-stream");
        assert_eq!(content_type("svg"), "application/octet-stream");
        assert_eq!(content_type("a.json"), "application/json");
    }

    #[test]
    fn tags_are_quoted_and_compared_weakly() {
        assert_eq!(tag_of(Some("1-2-3")).expect("a tag"), "\"1-2-3\"");
        assert_eq!(tag_of(Some("\"x\"")).expect("a tag"), "\"x\"");
        let unchanged = |known: &'static str| {
            let headers = HeaderMap::from_iter([(header::IF_NONE_MATCH, HeaderValue::from_static(known))]);
            is_unchanged(&headers, Some(&HeaderValue::from_static("\"x\"")))
        };
        assert!(unchanged("\"x\"") && unchanged("\"y\", W/\"x\"") && unchanged("*"));
        assert!(!unchanged("\"y\"") && !unchanged("x"));
    }
}
