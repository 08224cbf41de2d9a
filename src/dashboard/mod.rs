//! The status page: static files, embedded, no build step, nothing from elsewhere. It reads the same API as everybody.

use axum::Router;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use rust_embed::Embed;

use crate::problem::Problem;

#[derive(Embed)]
#[folder = "src/dashboard/page"]
struct Files;

/// `GET /` and the page's files. Open: the page itself asks for a token where one is needed.
pub fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    Router::new()
        .route("/", get(async || file("index.html", "text/html; charset=utf-8")))
        .route("/page/status.css", get(async || file("status.css", "text/css; charset=utf-8")))
        .route("/page/status.js", get(async || file("status.js", "text/javascript; charset=utf-8")))
        .route("/page/icon.svg", get(async || file("icon.svg", "image/svg+xml")))
}

fn file(name: &str, content_type: &'static str) -> Response {
    match Files::get(name) {
        Some(file) => ([(header::CONTENT_TYPE, content_type)], file.data).into_response(),
        None => Problem::internal(format!("{name} is not among the page's files")).into_response(),
    }
}
