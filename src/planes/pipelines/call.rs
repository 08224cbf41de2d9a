//! What an engine does itself: an HTTP call, which carries the key of its try, and a copy. Both were recorded before.

use serde_json::{Map, Value, json};

use super::run::{CopyCall, MAX_RESULT, Request};
use crate::clock::SharedClock;
use crate::panic::caught;
use crate::storage::{Stores, key_of};

/// Sends it; the result is `status`, `headers` and `body`. Any answer below 400 is a success. A panic is an error of the
/// call: unanswered, it would hold its run for ever.
pub(super) async fn send(client: reqwest::Client, clock: SharedClock, request: Request) -> Result<Value, String> {
    caught(in_time(client, clock, request)).await.unwrap_or_else(Err)
}

/// Copies it; the result says where it is and how long. A panic is an error of the copy.
pub(super) async fn copy(stores: Option<Stores>, clock: SharedClock, copy: CopyCall) -> Result<Value, String> {
    caught(copied_in_time(stores, clock, copy)).await.unwrap_or_else(Err)
}

async fn in_time(client: reqwest::Client, clock: SharedClock, request: Request) -> Result<Value, String> {
    let timeout = request.timeout;
    tokio::select! {
        answer = exchange(client, request) => answer,
        () = clock.sleep(timeout) => Err(format!("no answer within {}", humantime::format_duration(timeout))),
    }
}

async fn copied_in_time(stores: Option<Stores>, clock: SharedClock, copy: CopyCall) -> Result<Value, String> {
    let stores = stores.ok_or("this program has no storage")?;
    let timeout = copy.timeout;
    let copying = async {
        let (from, to) = (key_of(&copy.from.1)?, key_of(&copy.to.1)?);
        let (source, target) = (stores.get(copy.from.0.as_deref())?, stores.get(copy.to.0.as_deref())?);
        let size = source.copy_to(&from, target, &to).await?;
        Ok::<_, crate::storage::Error>(json!({ "backend": target.id(), "key": to.as_ref(), "size": size }))
    };
    tokio::select! {
        copied = copying => copied.map_err(|error| error.to_string()),
        () = clock.sleep(timeout) => Err(format!("not copied within {}", humantime::format_duration(timeout))),
    }
}

async fn exchange(client: reqwest::Client, request: Request) -> Result<Value, String> {
    let mut builder = client.request(request.method, &request.url);
    for (name, value) in &request.headers {
        builder = builder.header(name, value);
    }
    builder = builder.header("Idempotency-Key", &request.key);
    if let Some(body) = &request.body {
        builder = builder.json(body);
    }
    let mut response = builder.send().await.map_err(|error| words(&error))?;
    let status = response.status();
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| words(&error))? {
        if bytes.len() + chunk.len() > MAX_RESULT {
            return Err(format!("answered {status} with more than {MAX_RESULT} bytes"));
        }
        bytes.extend_from_slice(&chunk);
    }
    let text = String::from_utf8_lossy(&bytes);
    if status.is_client_error() || status.is_server_error() {
        let said: String = text.chars().take(500).collect();
        return Err(format!("answered {status}: {said}"));
    }
    let body = serde_json::from_str(&text).unwrap_or_else(|_| Value::String(text.into_owned()));
    let headers: Map<String, Value> = response
        .headers()
        .iter()
        .filter_map(|(name, value)| Some((name.to_string(), Value::String(value.to_str().ok()?.to_owned()))))
        .collect();
    Ok(json!({ "status": status.as_u16(), "headers": headers, "body": body }))
}

/// Without the URL, which may hold a token.
fn words(error: &reqwest::Error) -> String {
    let mut words = if error.is_connect() { "cannot connect".to_owned() } else { "the call failed".to_owned() };
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        words = format!("{words}: {cause}");
        source = cause.source();
    }
    words
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    struct Broken;

    #[async_trait::async_trait]
    impl crate::clock::Clock for Broken {
        fn now(&self) -> chrono::DateTime<chrono::Utc> {
            chrono::DateTime::UNIX_EPOCH
        }
        fn elapsed(&self) -> Duration {
            Duration::ZERO
        }
        async fn sleep(&self, _: Duration) {
            panic!("the clock is broken")
        }
    }

    #[tokio::test]
    async fn a_call_that_panics_fails() {
        let _ = rustls::crypto::ring::default_provider().install_default(); // once a process
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let request = Request {
            method: reqwest::Method::GET,
            url: format!("http://{}/", silent.local_addr().expect("an address")),
            headers: std::collections::BTreeMap::new(),
            body: None,
            timeout: Duration::from_secs(1),
            key: "k".to_owned(),
        };
        let answer = send(reqwest::Client::new(), Arc::new(Broken), request).await;
        assert_eq!(answer, Err("panicked: the clock is broken".to_owned()));
    }
}
