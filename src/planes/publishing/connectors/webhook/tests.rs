//! The webhook against a real server on a real socket.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::routing::{get, post};
use secrecy::SecretString;
use serde_json::Value;
use sha2::Digest;
use tokio::net::TcpListener;

use super::*;
use crate::clock::ManualClock;

/// Status, headers and body; status 0 is silence.
type Canned = (u16, Vec<(&'static str, String)>, String);

/// What the receiver was sent, and what it answers.
#[derive(Default)]
struct Receiver {
    requests: Mutex<Vec<(HeaderMap, Bytes)>>,
    answer: Mutex<Canned>,
    asked: Mutex<Vec<String>>,
}

async fn answer(receiver: &Receiver) -> axum::response::Response {
    let (status, headers, body) = receiver.answer.lock().expect("lock").clone();
    if status == 0 {
        std::future::pending::<()>().await;
    }
    let mut response = axum::response::Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(name, value);
    }
    response.body(body.into()).expect("a response")
}

async fn receiver() -> (Arc<Receiver>, String) {
    let receiver = Arc::new(Receiver::default());
    let router = Router::new()
        .route(
            "/publish",
            post(async |State(receiver): State<Arc<Receiver>>, headers: HeaderMap, body: Bytes| {
                receiver.requests.lock().expect("lock").push((headers, body));
                answer(&receiver).await
            }),
        )
        .route(
            "/status/{key}",
            get(async |State(receiver): State<Arc<Receiver>>, Path(key): Path<String>| {
                receiver.asked.lock().expect("lock").push(key);
                answer(&receiver).await
            }),
        )
        .with_state(receiver.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let base = format!("http://{}", listener.local_addr().expect("an address"));
    tokio::spawn(async move { axum::serve(listener, router).await });
    (receiver, base)
}

const KEY: &[u8] = b"twenty-four bytes at least";

fn settings(base: &str) -> config::Webhook {
    config::Webhook {
        url: format!("{base}/publish"),
        status_url: format!("{base}/status/{{key}}"),
        secret: SecretString::from(format!("whsec_{}", STANDARD.encode(KEY))),
    }
}

fn webhook(base: &str, timeout: Duration) -> Webhook {
    let clock = ManualClock::at("2026-11-20T18:30:00Z".parse().expect("a time"));
    Webhook::new(&settings(base), timeout, clock).expect("a webhook")
}

fn request() -> PublishRequest {
    PublishRequest {
        idempotency_key: "k/1".to_owned(),
        publication_id: 7,
        platform: "tiktok".to_owned(),
        campaign_id: Some(3),
        clip_id: 12,
        title: "Fünf \"Clips\"".to_owned(),
        media_uri: "s3://clips/12.mp4".to_owned(),
        duration_ms: Some(15_000),
        retry_count: 0,
    }
}

#[tokio::test]
async fn a_number_is_kept_as_it_was_written() {
    let (receiver, base) = receiver().await;
    for number in ["12345678901234567890123", "18446744073709551616", "-9", "1.10", "1e400"] {
        let body = format!(r#"{{"external_id": {number} ,"external_url":null}}"#);
        *receiver.answer.lock().expect("lock") = (201, vec![], body);
        let answer = webhook(&base, Duration::from_secs(5)).publish(&request()).await;
        assert_eq!(answer, Answer::Accepted { external_id: Some(number.to_owned()), external_url: None });
    }
}

/// RFC 2104 by hand, so that the signature is not checked by the code that makes it.
fn hmac_by_hand(key: &[u8], message: &[u8]) -> Vec<u8> {
    let mut block = [0_u8; 64];
    block[..key.len()].copy_from_slice(key);
    let inner = Sha256::new().chain_update(block.map(|byte| byte ^ 0x36)).chain_update(message).finalize();
    Sha256::new().chain_update(block.map(|byte| byte ^ 0x5c)).chain_update(inner).finalize().to_vec()
}

#[tokio::test]
async fn a_publication_is_posted_signed_and_with_its_key() {
    let (receiver, base) = receiver().await;
    *receiver.answer.lock().expect("lock") = (201, vec![], r#"{"id":99,"url":"https://v/99"}"#.to_owned());
    let answer = webhook(&base, Duration::from_secs(5)).publish(&request()).await;
    let (external_id, external_url) = (Some("99".to_owned()), Some("https://v/99".to_owned()));
    assert_eq!(answer, Answer::Accepted { external_id, external_url });

    let requests = receiver.requests.lock().expect("lock");
    let (headers, body) = &requests[0];
    let header = |name: &str| headers[name].to_str().expect("text");
    assert_eq!((header("webhook-id"), header("idempotency-key")), ("k/1", "k/1"));
    assert_eq!((header("webhook-timestamp"), header("content-type")), ("1795199400", "application/json"));
    let signed = [b"k/1.1795199400.".as_slice(), body].concat();
    assert_eq!(header("webhook-signature"), format!("v1,{}", STANDARD.encode(hmac_by_hand(KEY, &signed))));
    assert_eq!(
        serde_json::from_slice::<Value>(body).expect("JSON"),
        json!({
            "event": "publication.requested", "idempotency_key": "k/1", "publication_id": 7,
            "clip": { "id": 12, "title": "Fünf \"Clips\"", "media_uri": "s3://clips/12.mp4", "duration_ms": 15000 },
            "platform": "tiktok", "campaign_id": 3,
        })
    );
}

#[tokio::test]
async fn only_proof_that_nothing_was_accepted_is_a_refusal() {
    let (receiver, base) = receiver().await;
    let webhook = webhook(&base, Duration::from_secs(5));
    let after = |seconds| Until::After(Duration::from_secs(seconds));
    let date = Until::At("2026-11-21T07:28:00Z".parse().expect("a time"));
    let with = |value: &str| vec![("retry-after", value.to_owned())];
    let throttled = [
        (429, vec![], after(60)),
        (429, with("7"), after(7)),
        (429, with("Sat, 21 Nov 2026 07:28:00 GMT"), date),
        (503, with("120"), after(120)),
    ];
    for (status, headers, expected) in throttled {
        *receiver.answer.lock().expect("lock") = (status, headers.clone(), String::new());
        let Answer::Throttled { until, .. } = webhook.publish(&request()).await else { panic!("{status} {headers:?}") };
        assert_eq!(until, expected, "{status} {headers:?}");
    }
    for status in [301, 307, 308, 400, 401, 404, 410, 422] {
        *receiver.answer.lock().expect("lock") =
            (status, vec![("location", format!("{base}/status/x"))], String::new());
        assert!(matches!(webhook.publish(&request()).await, Answer::Refused { .. }), "{status}");
    }
    for status in [302, 303, 408, 409, 425, 500, 502, 503, 504] {
        *receiver.answer.lock().expect("lock") = (status, vec![], String::new());
        assert!(matches!(webhook.publish(&request()).await, Answer::NoAnswer { .. }), "{status}");
    }
    for body in ["not JSON".to_owned(), "[".repeat(BODY_LIMIT + 1)] {
        *receiver.answer.lock().expect("lock") = (200, vec![], body);
        let accepted = Answer::Accepted { external_id: None, external_url: None };
        assert_eq!(webhook.publish(&request()).await, accepted, "a 2xx is an acceptance whatever its body");
    }
    assert!(receiver.asked.lock().expect("lock").is_empty(), "no redirect is followed");
}

#[tokio::test]
async fn silence_and_a_cut_connection_are_unknown_and_no_connection_is_a_refusal() {
    let (receiver, base) = receiver().await;
    *receiver.answer.lock().expect("lock") = (0, vec![], String::new());
    let answer = webhook(&base, Duration::from_millis(200)).publish(&request()).await;
    assert!(matches!(answer, Answer::NoAnswer { .. }), "{answer:?}");
    assert_eq!(receiver.requests.lock().expect("lock").len(), 1, "sent once, and not again");

    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = format!("http://{}", listener.local_addr().expect("an address"));
    let cut = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("accept");
        let mut some = [0_u8; 16];
        tokio::io::AsyncReadExt::read_exact(&mut stream, &mut some).await.expect("read");
        drop(stream);
        drop(listener);
    });
    let answer = webhook(&address, Duration::from_secs(5)).publish(&request()).await;
    assert!(matches!(answer, Answer::NoAnswer { .. }), "{answer:?}");
    cut.await.expect("cut");
    let answer = webhook(&address, Duration::from_secs(5)).publish(&request()).await;
    let Answer::Refused { reason } = answer else { panic!("{answer:?}") };
    assert!(reason.contains("no connection") && !reason.contains("/publish"), "{reason}");
}

#[tokio::test]
async fn the_status_url_is_asked_with_the_key() {
    let (receiver, base) = receiver().await;
    let webhook = webhook(&base, Duration::from_secs(5));
    let published = StatusAnswer::Published { external_id: Some("9".to_owned()), external_url: None };
    let cases = [
        (200, r#"{"status":"published","external_id":"9"}"#, Some(published)),
        (200, r#"{"status":"processing"}"#, Some(StatusAnswer::Processing)),
        (200, r#"{"status":"failed","error":"bad"}"#, Some(StatusAnswer::Failed { reason: "bad".to_owned() })),
        (
            200,
            r#"{"status":"failed","error":"b\u0000a\u001bd"}"#,
            Some(StatusAnswer::Failed { reason: "bad".to_owned() }),
        ),
        (404, "", Some(StatusAnswer::NeverSeen)),
        (200, r#"{"status":"dancing"}"#, None),
        (200, "", None),
        (403, "", None),
        (500, "", None),
    ];
    for (status, body, expected) in cases {
        *receiver.answer.lock().expect("lock") = (status, vec![], body.to_owned());
        let answer = webhook.status("tiktok", "a/b c").await;
        match expected {
            Some(expected) => assert_eq!(answer, expected),
            None => assert!(matches!(answer, StatusAnswer::NoAnswer { .. }), "{status} {body}"),
        }
    }
    assert_eq!(receiver.asked.lock().expect("lock")[0], "a/b c", "encoded on the way");
}

#[test]
fn settings_that_cannot_work_are_refused_by_name() {
    let clock = ManualClock::at(DateTime::UNIX_EPOCH);
    let refused = |change: fn(&mut config::Webhook)| {
        let mut config = settings("https://receiver.example");
        change(&mut config);
        let refused = Webhook::new(&config, Duration::from_secs(1), clock.clone()).err().expect("refused");
        refused.to_string()
    };
    assert!(refused(|config| config.url.clear()).contains("publishing.webhook.url"));
    assert!(refused(|config| config.url = "ftp://receiver.example".to_owned()).contains("http or https"));
    assert!(refused(|config| config.status_url = "https://receiver.example".to_owned()).contains("{key}"));
    for secret in ["", "whsec_", "whsec_c2hvcnQ=", "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0"] {
        let config = config::Webhook { secret: secret.into(), ..settings("https://receiver.example") };
        assert!(matches!(Webhook::new(&config, Duration::from_secs(1), clock.clone()), Err(WebhookError::Secret)));
    }
}
