//! Every route against the OpenAPI document, by a generator of hostile requests.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use showrunner::actor::Role;
use showrunner::config::Token;

use super::address;
use crate::support::World;

/// Set where a skipped test is a failure.
const REQUIRE_VARIABLE: &str = "SHOWRUNNER_TEST_REQUIRE_SCHEMATHESIS";
const SECRET_KEY: &str = "5c0f1e2d3b4a59687786a5b4c3d2e1f00123456789abcdef02468ace13579bdf";
const TOKEN: &str = "schemathesis-0123456789";

/// For one answer and for the whole attack: a bound for what hangs, not for what is slow on a busy machine.
const PATIENCE: Duration = Duration::from_secs(600);

/// Beside the fifth hundred: statuses, content types and bodies as documented, what the schema forbids is refused, and
/// nothing goes without the token. Left out: that all is taken that the schema allows (it cannot say which platforms
/// and clips there are), and that the header is missed before the body (which one is told is ours to choose).
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,\
    response_headers_conformance,response_schema_conformance,unsupported_method,allow_header_conformance,\
    use_after_free,ensure_resource_availability";
const WITH_TOKENS: &str = ",negative_data_rejection,ignored_auth";

fn program() -> Option<PathBuf> {
    let named = std::env::var_os("SHOWRUNNER_TEST_SCHEMATHESIS").map(PathBuf::from).filter(|file| file.is_file());
    assert!(
        named.is_some() || std::env::var_os(REQUIRE_VARIABLE).is_none(),
        "{REQUIRE_VARIABLE} is set and SHOWRUNNER_TEST_SCHEMATHESIS names no program"
    );
    if named.is_none() {
        eprintln!("skipped: SHOWRUNNER_TEST_SCHEMATHESIS names no program; `.ci/run` installs one under target/");
    }
    named
}

/// A service that takes workers, and whose own patience a busy machine does not use up.
async fn besieged(world: &mut World) {
    world.config.http.requests_per_second = 100_000;
    world.config.http.request_timeout_ms = PATIENCE.as_millis() as u64;
    world.config.secret_key = SECRET_KEY.into();
    world.start_still().await;
}

async fn attack(world: &World, program: PathBuf, checks: String, headers: &[&str]) {
    let base = format!("http://{}", address(world));
    let document = reqwest::get(format!("{base}/openapi.json")).await.expect("an answer").text().await.expect("a body");
    let document: Value = serde_json::from_str(&document).expect("JSON");
    let paths = document["paths"].as_object().expect("paths");
    let operations: usize = paths.values().filter_map(Value::as_object).map(serde_json::Map::len).sum();
    let mut command = tokio::process::Command::new(program);
    command.arg("run").arg(format!("{base}/openapi.json")).args(["--checks", &checks]);
    // One worker: two threads that parse Python at once can break each other (CPython 3.11: "AST constructor recursion
    // depth mismatch"), and do on a busy machine.
    command.args(["--seed", "1", "--phases", "coverage", "--workers", "1", "--continue-on-failure", "--no-color"]);
    command.args(["--request-timeout", &PATIENCE.as_secs().to_string(), "--suppress-health-check", "all"]);
    command.args(["--warnings", "off", "--generation-database", "none"]);
    command.args(headers.iter().flat_map(|header| ["--header", header])).current_dir(world.folder());
    let run = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(PATIENCE, run).await.expect("it ends in time").expect("schemathesis runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    let tested = format!("Tested: {operations}\n");
    assert!(operations > 0 && said.contains(&tested), "every one of the {operations} operations is tried:\n{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_generated_request_breaks_the_open_doors() {
    let Some(program) = program() else { return };
    let mut world = World::on_sqlite().await;
    besieged(&mut world).await;
    attack(&world, program, CHECKS.to_owned(), &[]).await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_generated_request_gets_past_the_token() {
    let Some(program) = program() else { return };
    let Some(mut world) = World::on_postgres().await else { return };
    world.config.auth.tokens = vec![Token { name: "tester".to_owned(), role: Role::Admin, token: TOKEN.into() }];
    besieged(&mut world).await;
    attack(&world, program, format!("{CHECKS}{WITH_TOKENS}"), &[&format!("Authorization: Bearer {TOKEN}")]).await;
    world.end().await;
}
