//! A receiver of publications on a real socket, which counts what it is sent.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};

/// Accepts everything, and remembers how often each idempotency key came.
pub struct Receiver {
    base: String,
    posts: Posts,
}

type Posts = Arc<Mutex<BTreeMap<String, u32>>>;

impl Receiver {
    /// Answers each post after `delay`; never, where there is none.
    pub async fn answering(delay: Option<Duration>) -> Self {
        let posts = Posts::default();
        let publish = async move |State(posts): State<Posts>, headers: HeaderMap| -> Json<Value> {
            let key = headers["idempotency-key"].to_str().expect("a key").to_owned();
            *posts.lock().expect("a lock").entry(key.clone()).or_default() += 1;
            match delay {
                Some(delay) => tokio::time::sleep(delay).await,
                None => std::future::pending().await,
            }
            Json(json!({ "external_id": key }))
        };
        let state = async |State(posts): State<Posts>, Path(key): Path<String>| -> (StatusCode, Json<Value>) {
            match posts.lock().expect("a lock").contains_key(&key) {
                true => (StatusCode::OK, Json(json!({ "status": "published", "external_id": key }))),
                false => (StatusCode::NOT_FOUND, Json(json!({}))),
            }
        };
        let router = Router::new()
            .route("/publish", post(publish))
            .route("/publications/{key}", get(state))
            .with_state(posts.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let base = format!("http://{}", listener.local_addr().expect("an address"));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { base, posts }
    }

    /// How often each key came.
    pub fn posts(&self) -> BTreeMap<String, u32> {
        self.posts.lock().expect("a lock").clone()
    }

    /// The settings that make the program publish here.
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        vec![
            ("SHOWRUNNER_PUBLISHING__CONNECTOR", "webhook".to_owned()),
            ("SHOWRUNNER_PUBLISHING__WEBHOOK__URL", format!("{}/publish", self.base)),
            ("SHOWRUNNER_PUBLISHING__WEBHOOK__STATUS_URL", format!("{}/publications/{{key}}", self.base)),
            ("SHOWRUNNER_PUBLISHING__WEBHOOK__SECRET", "whsec_dHdlbnR5LWZvdXIgYnl0ZXMgYXQgbGVhc3Q=".to_owned()),
        ]
    }
}
