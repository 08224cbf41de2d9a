//! The doors, knocked at over a real socket.

mod connections;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::Extension;
use reqwest::{Client, Method, Response, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{AppState, Bounds, check_exposure, metrics, router, serve};
use crate::actor::{Actor, Caller, Role};
use crate::clock::ManualClock;
use crate::config::{Config, Token};
use crate::control::Monitor;
use crate::control::decider::RuleBook;
use crate::control::orchestrator::Orchestrator;
use crate::db::{Db, Options};
use crate::ledger::{self, Entry};
use crate::planes::publishing::Publishing;
use crate::random::Random;
use crate::web::Body;

/// The service's doors on a free port, around a database in memory.
struct Doors {
    address: SocketAddr,
    db: Db,
    clock: Arc<ManualClock>,
    client: Client,
    stop: CancellationToken,
    served: JoinHandle<()>,
    gate: Gate,
}

/// Where the slow route says that it has begun, and waits to be let go.
#[derive(Clone)]
struct Gate {
    begun: Arc<Semaphore>,
    open: Arc<Semaphore>,
}

#[derive(Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
struct Thing {
    title: String,
}

#[utoipa::path(post, path = "/test/things", operation_id = "makeThing", request_body = Thing,
    responses((status = 200, body = String)))]
async fn make_thing(Body(thing): Body<Thing>) -> String {
    thing.title
}

#[utoipa::path(get, path = "/test/panic", operation_id = "panic", responses((status = 200)))]
async fn panic() {
    panic!("on purpose");
}

#[utoipa::path(get, path = "/test/slow", operation_id = "slow", responses((status = 200, body = String)))]
async fn slow(Extension(gate): Extension<Gate>) -> &'static str {
    gate.begun.add_permits(1);
    gate.open.acquire().await.expect("gate").forget();
    "done"
}

#[utoipa::path(post, path = "/test/admin", operation_id = "admin", responses((status = 200, body = String)))]
async fn admin(caller: Caller) -> Result<String, crate::problem::Problem> {
    caller.require(Role::Admin)?;
    Ok(caller.name)
}

async fn doors(change: impl FnOnce(&mut Config)) -> Doors {
    doors_with(change, true).await
}

async fn doors_with(change: impl FnOnce(&mut Config), migrated: bool) -> Doors {
    doors_within(Bounds::default(), change, migrated).await
}

async fn doors_within(bounds: Bounds, change: impl FnOnce(&mut Config), migrated: bool) -> Doors {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut config = Config::default();
    change(&mut config);
    let clock: Arc<ManualClock> = ManualClock::at("2026-11-20T10:00:00Z".parse().expect("time"));
    let db = Db::open(&Options::new("sqlite::memory:"), clock.clone()).await.expect("open");
    if migrated {
        db.migrate().await.expect("migrate");
    }
    let gate = Gate { begun: Arc::new(Semaphore::new(0)), open: Arc::new(Semaphore::new(0)) };
    let planes = OpenApiRouter::new()
        .routes(routes!(make_thing))
        .routes(routes!(panic))
        .routes(routes!(admin))
        .routes(routes!(slow))
        .layer(Extension(gate.clone()));
    let publishing = Publishing::new(config.publishing.clone(), db.clone(), clock.clone(), Random::seeded(1));
    let monitor = Monitor::new(db.clone(), Arc::new(publishing.expect("publishing")));
    let (rules, interval) = (Arc::new(RuleBook::built_in()), Duration::from_secs(2));
    let state = AppState {
        orchestrator: Orchestrator::new(db.clone(), clock.clone(), monitor, rules, "here", interval),
        db: db.clone(),
        config: Arc::new(config),
        random: Random::seeded(1),
        metrics: metrics::recorder(),
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    let stop = CancellationToken::new();
    let served = tokio::spawn(serve(
        listener,
        router(state, planes, utoipa_axum::router::OpenApiRouter::new()),
        bounds,
        stop.clone(),
        Duration::from_secs(20),
    ));
    Doors { address, db, clock, client: Client::new(), stop, served, gate }
}

impl Doors {
    fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.client.request(method, format!("http://{}{path}", self.address))
    }
    async fn get(&self, path: &str) -> Response {
        self.request(Method::GET, path).send().await.expect("answer")
    }
    async fn json(&self, path: &str) -> Value {
        let response = self.get(path).await;
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        response.json().await.expect("JSON")
    }
}

/// Checks that the answer is a well-formed problem of that status and returns it.
async fn problem(response: Response, status: u16) -> Value {
    assert_eq!(response.status().as_u16(), status, "{}", response.url());
    assert_eq!(response.headers()["content-type"], "application/problem+json", "{}", response.url());
    let problem: Value = response.json().await.expect("JSON");
    assert_eq!(problem["status"], status);
    assert!(problem["type"].as_str().is_some_and(|kind| kind.starts_with("/problems/")));
    assert!(problem["detail"].as_str().is_some_and(|detail| detail.len() > 10));
    problem
}

fn tokens(config: &mut Config) {
    config.auth.tokens = [("ann", Role::Viewer), ("bob", Role::Operator), ("eve", Role::Admin)]
        .into_iter()
        .map(|(name, role)| Token { name: name.to_owned(), role, token: format!("{name}-0123456789abcdef").into() })
        .collect();
    config.http.requests_per_second = 10_000;
    config.http.request_timeout_ms = 200;
}

#[tokio::test]
async fn every_route_asks_for_the_role_that_its_method_takes() {
    let doors = doors(tokens).await;
    let document = doors.json("/openapi.json").await;
    let open = ["/health", "/healthz", "/readyz"];
    let mut checked = 0;
    for (path, item) in document["paths"].as_object().expect("paths") {
        for (method, operation) in item.as_object().expect("item") {
            let method: Method = method.to_uppercase().parse().expect("method");
            let path_with_ids = path.replace("{id}", "1");
            let send = async |authorization: Option<&str>| {
                let mut request = doors.request(method.clone(), &path_with_ids);
                if let Some(authorization) = authorization {
                    request = request.header("Authorization", authorization);
                }
                request.send().await.expect("answer")
            };
            let is_open = open.contains(&path.as_str());
            let declared = operation["security"] != json!([{}]);
            assert_eq!(declared, !is_open, "{method} {path}: the document says who may");
            for authorization in [None, Some("Bearer nonsense"), Some("Basic ann-0123456789abcdef"), Some("Bearer")] {
                let response = send(authorization).await;
                if is_open {
                    assert_ne!(response.status(), 401, "{method} {path}");
                } else {
                    assert!(response.headers()["www-authenticate"].to_str().expect("text").starts_with("Bearer "));
                    problem(response, 401).await;
                }
            }
            let viewer = send(Some("Bearer ann-0123456789abcdef")).await.status();
            let operator = send(Some("bearer bob-0123456789abcdef")).await.status();
            let admin = send(Some("Bearer eve-0123456789abcdef")).await.status();
            assert_eq!(viewer == 403, method != Method::GET, "{method} {path}: viewer got {viewer}");
            assert_eq!(operator == 403, path == "/test/admin", "{method} {path}: operator got {operator}");
            assert!(![401, 403].contains(&admin.as_u16()), "{method} {path}: admin got {admin}");
            checked += 1;
        }
    }
    assert!(checked >= 16, "only {checked} routes are in the document");
    assert_eq!(doors.get("/").await.status(), 200, "the page itself asks for the token");
}

#[tokio::test]
async fn every_refusal_is_a_problem() {
    let doors = doors(|config| {
        config.http.body_limit_bytes = 100;
        config.http.request_timeout_ms = 100;
    })
    .await;
    problem(doors.get("/nowhere").await, 404).await;
    problem(doors.get("/v1/cycles/77").await, 404).await;
    problem(doors.get("/v1/cycles/x").await, 404).await;
    problem(doors.get("/v1/cycles/%00").await, 404).await;
    let response = doors.request(Method::DELETE, "/v1/cycles").send().await.expect("answer");
    assert_eq!(response.headers()["allow"], "GET,HEAD");
    problem(response, 405).await;

    let post = || doors.request(Method::POST, "/test/things");
    let json = |body: &str| post().header("Content-Type", "application/json; charset=utf-8").body(body.to_owned());
    assert_eq!(json(r#"{"title":"a"}"#).send().await.expect("answer").text().await.expect("text"), "a");
    problem(post().body("{}").send().await.expect("answer"), 415).await;
    problem(json("{").send().await.expect("answer"), 400).await;
    let refused = problem(json(r#"{"titel":"a"}"#).send().await.expect("answer"), 422).await;
    assert_eq!(refused["errors"], json!([{ "field": "titel", "message": "is not known; did you mean `title`?" }]));
    problem(json(&format!("\"{}\"", "a".repeat(200))).send().await.expect("answer"), 413).await;
    assert!(raw(doors.address, LONG_IN_CHUNKS).await.starts_with("HTTP/1.1 413 "));

    let refused = problem(doors.get("/v1/cycles?limt=3").await, 422).await;
    assert_eq!(refused["errors"][0]["field"], "limt");
    problem(doors.get("/v1/cycles?status=done").await, 422).await;
    problem(doors.get("/v1/health-history?minutes=1441").await, 422).await;
    let hidden = problem(doors.get("/test/panic").await, 500).await;
    assert!(!hidden["detail"].as_str().expect("detail").contains("on purpose"), "the cause stays inside");
    problem(doors.get("/test/slow").await, 504).await;
}

/// A body that does not say how long it is.
const LONG_IN_CHUNKS: &str = concat!(
    "POST /test/things HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n",
    "Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n",
    "40\r\n{\"title\":\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n",
    "40\r\naaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n0\r\n\r\n"
);

/// Sends these bytes and reads the answer to its end.
async fn raw(address: SocketAddr, request: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(address).await.expect("connect");
    stream.write_all(request.as_bytes()).await.expect("write");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("read");
    answer
}

#[tokio::test]
async fn who_asks_too_often_is_told_when_to_come_back() {
    let doors = doors(|config| config.http.requests_per_second = 1).await;
    for _ in 0..10 {
        assert_eq!(doors.get("/healthz").await.status(), 200);
    }
    let response = doors.get("/healthz").await;
    assert_eq!(response.headers()["retry-after"], "1");
    problem(response, 429).await;
}

#[tokio::test]
async fn an_open_door_serves_only_this_machine() {
    let doors = doors(|_| {}).await;
    let port = doors.address.port();
    let send = async |host: String, origin: Option<&str>| {
        let mut request = doors.request(Method::GET, "/v1/cycles").header("Host", host);
        if let Some(origin) = origin {
            request = request.header("Origin", origin);
        }
        request.send().await.expect("answer")
    };
    for host in ["localhost".to_owned(), format!("127.0.0.1:{port}"), "[::1]:1".to_owned()] {
        assert_eq!(send(host.clone(), None).await.status(), 200, "{host}");
        assert_eq!(send(host.clone(), Some(&format!("http://{host}"))).await.status(), 200, "our own page");
        problem(send(host, Some("http://localhost:3000")).await, 403).await;
    }
    for host in ["evil.example", "127.0.0.1.evil.example", "10.0.0.1:8000"] {
        problem(send(host.to_owned(), None).await, 403).await;
    }
    for origin in ["http://evil.example", "null", "http://localhost.evil.example"] {
        problem(send("localhost".to_owned(), Some(origin)).await, 403).await;
    }
    let doors = doors_with(tokens, true).await;
    let response = doors.request(Method::GET, "/healthz").header("Host", "runner.example").send().await;
    assert_eq!(response.expect("answer").status(), 200, "behind tokens any name will do");
}

#[test]
fn an_open_door_is_not_opened_to_others() {
    let mut config = Config { host: [0, 0, 0, 0].into(), ..Config::default() };
    let sentence = check_exposure(&config).expect_err("refused");
    assert!(sentence.contains("auth.tokens") && sentence.contains("0.0.0.0"), "{sentence}");
    tokens(&mut config);
    assert_eq!(check_exposure(&config), Ok(()));
    assert_eq!(check_exposure(&Config::default()), Ok(()));
}

#[tokio::test]
async fn every_answer_carries_a_request_id_and_careful_headers() {
    let doors = doors(|_| {}).await;
    let ask = async |id: &str| {
        let response = doors.request(Method::GET, "/nowhere").header("x-request-id", id).send().await.expect("answer");
        assert_eq!(response.headers()["x-content-type-options"], "nosniff");
        assert!(
            response.headers()["content-security-policy"].to_str().expect("text").contains("frame-ancestors 'none'")
        );
        response.headers()["x-request-id"].to_str().expect("text").to_owned()
    };
    assert_eq!(ask("abc-1").await, "abc-1");
    let long = "a".repeat(129);
    for replaced in ["", "a b", long.as_str()] {
        let id = ask(replaced).await;
        assert_eq!(id.len(), 32, "{replaced:?} became {id:?}");
    }
}

#[tokio::test]
async fn lists_come_a_page_at_a_time_and_whole() {
    let doors = doors(|_| {}).await;
    for id in 1..=7 {
        super::cycles::tests::insert_cycle(&doors.db, id, &format!("2026-11-20T09:59:0{id}.000Z"), 90).await;
        let mut tx = doors.db.begin().await.expect("begin");
        let entry = Entry::new("orchestrator.enabled", Actor::System, json!({ "z": id, "a": 1.50 }));
        ledger::append(&mut tx, &[entry.subject(format!("clip:{id}"))]).await.expect("append");
        tx.commit().await.expect("commit");
    }
    for list in ["/v1/cycles", "/v1/ledger"] {
        let (mut ids, mut path) = (Vec::new(), format!("{list}?limit=3"));
        loop {
            let page = doors.json(&path).await;
            ids.extend(page["items"].as_array().expect("items").iter().map(|item| item["id"].as_i64().expect("id")));
            let Some(cursor) = page["next_cursor"].as_str() else { break };
            path = format!("{list}?limit=3&cursor={cursor}");
        }
        assert_eq!(ids, [7, 6, 5, 4, 3, 2, 1], "{list}");
    }
    let page = doors.json("/v1/ledger?subject=clip:4&event_type=orchestrator.&actor=system&severity=info").await;
    assert_eq!(page["items"][0]["payload"], json!({ "z": 4, "a": 1.5 }));
    assert_eq!(page["items"].as_array().map(Vec::len), Some(1));
    assert_eq!(doors.json("/v1/cycles?status=error").await["items"], json!([]));
    assert_eq!(doors.json("/v1/cycles?since=2026-11-20T09:59:07Z").await["items"].as_array().map(Vec::len), Some(1));
    assert_eq!(doors.json("/v1/cycles/3").await["snapshot"], json!({ "at": "x" }));
    let minutes = doors.json("/v1/health-history").await;
    assert_eq!(minutes["minutes"], json!([{ "minute": "2026-11-20T09:59:00.000Z", "min": 90, "last": 90 }]));

    let verified = doors.json("/v1/ledger/verify").await;
    assert_eq!(verified, json!({ "whole": true, "entries": 7, "checkpoint_id": null, "first_bad": null }));
}

#[tokio::test]
async fn the_document_is_complete() {
    let doors = doors(|_| {}).await;
    let document = doors.json("/openapi.json").await;
    let mut ids = std::collections::BTreeSet::new();
    for (path, item) in document["paths"].as_object().expect("paths") {
        for (method, operation) in item.as_object().expect("item") {
            let id = operation["operationId"].as_str().unwrap_or_default();
            assert!(ids.insert(id.to_owned()) && !id.is_empty(), "{method} {path}: its operation id is `{id}`");
            let unavailable = &operation["responses"]["503"]["content"]["application/problem+json"]["schema"]["$ref"];
            assert_eq!(unavailable, "#/components/schemas/Problem", "{method} {path}");
        }
    }
    let mut missing = Vec::new();
    references(&document, &mut |reference| {
        let pointer = reference.trim_start_matches('#');
        if document.pointer(pointer).is_none() {
            missing.push(reference.to_owned());
        }
    });
    assert_eq!(missing, Vec::<String>::new());
    assert_eq!(document["components"]["securitySchemes"]["bearer"]["scheme"], "bearer");
    let docs = doors.get("/docs/").await;
    assert!(docs.headers()["content-security-policy"].to_str().expect("text").contains("'unsafe-inline'"));
    assert!(docs.text().await.expect("text").contains("swagger-ui"));
}

fn references(value: &Value, seen: &mut impl FnMut(&str)) {
    match value {
        Value::Object(fields) => {
            if let Some(reference) = fields.get("$ref").and_then(Value::as_str) {
                seen(reference);
            }
            fields.values().for_each(|value| references(value, seen));
        }
        Value::Array(items) => items.iter().for_each(|value| references(value, seen)),
        _ => {}
    }
}

#[tokio::test]
async fn the_page_loads_nothing_from_elsewhere() {
    let doors = doors(|_| {}).await;
    let page = doors.get("/").await;
    assert_eq!(page.headers()["content-type"], "text/html; charset=utf-8");
    let page = page.text().await.expect("text");
    for id in ["health-score", "health-status", "health-chart", "cycles", "rules", "switch", "run-once"] {
        assert!(page.contains(&format!("id=\"{id}\"")), "#{id} is missing");
    }
    for file in page.split(['"', '\'']).filter(|text| text.starts_with("/page/")) {
        assert_eq!(doors.get(file).await.status(), 200, "{file}");
        assert!(!doors.get(file).await.text().await.expect("text").contains("innerHTML"));
    }
    assert!(!page.contains("https://") && !page.contains("<script>") && !page.contains(" style="));
}

#[tokio::test]
async fn readiness_names_what_is_missing() {
    let doors = doors_with(|_| {}, false).await;
    assert_eq!(doors.get("/healthz").await.status(), 200);
    let unready = problem(doors.get("/readyz").await, 503).await;
    assert_eq!(unready["errors"][0]["field"], "migrations");
    doors.db.close().await;
    let unready = problem(doors.get("/readyz").await, 503).await;
    assert_eq!(unready["errors"][0]["field"], "database");
    assert_eq!(doors.get("/healthz").await.status(), 200);
    let metrics = doors.get("/metrics").await.text().await.expect("text");
    assert!(metrics.contains("showrunner_http_requests_total{method=\"GET\",route=\"/readyz\",status=\"503\"}"));
}

#[tokio::test]
async fn the_loop_answers_in_the_promised_shapes() {
    let doors = doors(|_| {}).await;
    let post = async |path: &str| {
        let response = doors.request(Method::POST, path).send().await.expect("answer");
        assert_eq!(response.status(), 200, "{path}");
        response.json::<Value>().await.expect("JSON")
    };
    let enabled = json!({ "status": "started", "interval_seconds": 2, "enabled": true });
    assert_eq!(post("/orchestrator/enable").await, json!({ "status": "ok", "orchestrator": enabled }));
    let status = doors.json("/orchestrator/status").await;
    assert_eq!(
        (&status["status"], &status["running"], &status["enabled"]),
        (&json!("ok"), &json!(false), &json!(true))
    );
    let unready = problem(doors.get("/readyz").await, 503).await;
    assert_eq!(unready["errors"][0]["field"], "cycle");

    super::cycles::tests::insert_cycle(&doors.db, 1, "2026-11-20T09:59:54.000Z", 90).await;
    assert_eq!(doors.get("/readyz").await.status(), 200, "three intervals are not over yet");
    doors.clock.advance(Duration::from_millis(1));
    assert_eq!(problem(doors.get("/readyz").await, 503).await["errors"][0]["field"], "cycle");

    let stopped = json!({ "status": "ok", "orchestrator": { "status": "stopped" } });
    assert_eq!(post("/orchestrator/disable").await, stopped);
    assert_eq!(doors.get("/readyz").await.status(), 200, "a loop that is off is not missed");
    let written = doors.json("/v1/ledger?event_type=orchestrator.").await;
    assert_eq!(written["items"][0]["event_type"], "orchestrator.disabled");
    assert_eq!(written["items"][0]["actor"], "operator:local");

    let look = doors.json("/orchestrator/snapshot").await;
    assert_eq!((&look["status"], &look["snapshot"]["system"]["health_score"]), (&json!("ok"), &json!(100)));
    let metrics = doors.get("/metrics").await.text().await.expect("text");
    assert!(
        metrics.contains("showrunner_health_score 100") && metrics.contains("showrunner_jobs{status=\"pending\"} 0")
    );
    let rules = doors.json("/v1/rules").await;
    assert_eq!(rules["rules"].as_array().map(Vec::len), rules["count"].as_u64().map(|count| count as usize));
}

#[tokio::test]
async fn a_running_request_ends_before_the_doors_close() {
    let doors = doors(|_| {}).await;
    let request = doors.request(Method::GET, "/test/slow");
    let slow = tokio::spawn(async move { request.send().await });
    doors.gate.begun.acquire().await.expect("begun").forget();
    doors.stop.cancel();
    let refused = async {
        while tokio::net::TcpStream::connect(doors.address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), refused).await.expect("no new connections");
    assert!(!doors.served.is_finished());
    doors.gate.open.add_permits(1);
    assert_eq!(slow.await.expect("task").expect("answer").text().await.expect("text"), "done");
    doors.served.await.expect("served");
}
