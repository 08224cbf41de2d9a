//! Every route, by every role and token: who may do what is decided here, and a route without a decision fails.

use reqwest::Method;
use serde_json::{Value, json};
use showrunner::actor::Role;
use showrunner::config::Token;

use super::address;
use crate::on_both;

/// Who may use a route; the lowest role, or nobody needs any.
#[derive(Debug, Clone, Copy, PartialEq)]
enum May {
    Anybody,
    From(Role),
}

const DECIDED: &[(&str, &str, May)] = &[
    ("get", "/healthz", May::Anybody),
    ("get", "/readyz", May::Anybody),
    ("get", "/metrics", May::From(Role::Viewer)),
    ("get", "/orchestrator/snapshot", May::From(Role::Viewer)),
    ("get", "/orchestrator/status", May::From(Role::Viewer)),
    ("post", "/orchestrator/run-once", May::From(Role::Operator)),
    ("post", "/orchestrator/enable", May::From(Role::Operator)),
    ("post", "/orchestrator/disable", May::From(Role::Operator)),
    ("get", "/v1/cycles", May::From(Role::Viewer)),
    ("get", "/v1/cycles/{id}", May::From(Role::Viewer)),
    ("get", "/v1/health-history", May::From(Role::Viewer)),
    ("get", "/v1/ledger", May::From(Role::Viewer)),
    ("get", "/v1/ledger/verify", May::From(Role::Viewer)),
    ("get", "/v1/rules", May::From(Role::Viewer)),
    ("get", "/v1/events", May::From(Role::Viewer)),
    ("get", "/api/storage/{path}", May::From(Role::Viewer)),
    ("get", "/health", May::Anybody),
    ("post", "/api/queue/task", May::From(Role::Operator)),
    ("post", "/api/queue/batch", May::From(Role::Operator)),
    ("get", "/api/queue/status", May::From(Role::Viewer)),
    ("get", "/api/queue/items", May::From(Role::Viewer)),
    ("get", "/api/task-runs/{id}", May::From(Role::Viewer)),
    ("post", "/api/task-runs/{id}/cancel", May::From(Role::Operator)),
    ("get", "/api/dlq", May::From(Role::Viewer)),
    ("delete", "/api/dlq", May::From(Role::Admin)),
    ("post", "/api/dlq/retry", May::From(Role::Operator)),
    ("delete", "/api/dlq/{id}", May::From(Role::Admin)),
    ("post", "/api/dlq/{id}/retry", May::From(Role::Operator)),
    ("get", "/api/services", May::From(Role::Viewer)),
    ("get", "/api/services/{id}/tasks", May::From(Role::Viewer)),
    ("get", "/api/tasks/{id}/history", May::From(Role::Viewer)),
    ("get", "/api/queues", May::From(Role::Viewer)),
    ("post", "/api/queues/{id}/pause", May::From(Role::Operator)),
    ("post", "/api/queues/{id}/resume", May::From(Role::Operator)),
    ("put", "/api/queues/{id}/limits", May::From(Role::Operator)),
    ("post", "/api/process", May::From(Role::Operator)),
    // Workers prove themselves by tokens of their own; where no key is shared with them, all are refused.
    ("post", "/api/register", May::Anybody),
    ("post", "/api/pull", May::Anybody),
    ("post", "/api/heartbeat", May::Anybody),
    ("post", "/api/progress", May::Anybody),
    ("post", "/api/callback/{runId}", May::Anybody),
    ("get", "/api/engines", May::From(Role::Viewer)),
    ("get", "/api/engines/{id}/health", May::From(Role::Viewer)),
    ("post", "/api/engines/{id}/pause", May::From(Role::Operator)),
    ("post", "/api/engines/{id}/resume", May::From(Role::Operator)),
    ("post", "/api/engines/{id}/stop", May::From(Role::Operator)),
    ("get", "/api/pipelines", May::From(Role::Viewer)),
    ("get", "/api/pipelines/{id}", May::From(Role::Viewer)),
    ("put", "/api/pipelines/{id}", May::From(Role::Operator)),
    ("post", "/api/pipelines/{id}/trigger", May::From(Role::Operator)),
    ("post", "/api/pipelines/{id}/dry-run", May::From(Role::Operator)),
    ("get", "/api/pipelines/{id}/graph", May::From(Role::Viewer)),
    ("get", "/api/pipeline-schema", May::From(Role::Viewer)),
    ("get", "/api/runs", May::From(Role::Viewer)),
    ("get", "/api/runs/{id}", May::From(Role::Viewer)),
    ("get", "/api/runs/{id}/graph", May::From(Role::Viewer)),
    ("get", "/api/triggers", May::From(Role::Viewer)),
    ("get", "/api/triggers/{id}", May::From(Role::Viewer)),
    ("put", "/api/triggers/{id}", May::From(Role::Operator)),
    ("post", "/api/triggers/{id}/start", May::From(Role::Operator)),
    ("post", "/api/triggers/{id}/stop", May::From(Role::Operator)),
    // A trigger with a token or secret of its own is fired by whoever has that; any other takes an operator.
    ("post", "/api/triggers/{id}/fire", May::Anybody),
    ("post", "/api/runs/{id}/pause", May::From(Role::Operator)),
    ("post", "/api/runs/{id}/resume", May::From(Role::Operator)),
    ("post", "/api/runs/{id}/cancel", May::From(Role::Operator)),
    ("post", "/api/runs/{id}/retry", May::From(Role::Operator)),
    ("get", "/v1/agents", May::From(Role::Viewer)),
    ("get", "/v1/agents/{id}", May::From(Role::Viewer)),
    ("post", "/v1/agents/{id}/drain", May::From(Role::Operator)),
    ("get", "/v1/agents/{id}/tokens", May::From(Role::Admin)),
    ("post", "/v1/agents/{id}/tokens", May::From(Role::Admin)),
    ("delete", "/v1/agents/{id}/tokens/{tokenId}", May::From(Role::Admin)),
    ("get", "/v1/jobs", May::From(Role::Viewer)),
    ("post", "/v1/jobs", May::From(Role::Operator)),
    ("get", "/v1/jobs/{id}", May::From(Role::Viewer)),
    ("post", "/v1/jobs/{id}/stop", May::From(Role::Operator)),
    ("post", "/v1/jobs/{id}/mute", May::From(Role::Operator)),
    ("post", "/v1/jobs/{id}/unmute", May::From(Role::Operator)),
    ("get", "/v1/jobs/{id}/metadata", May::From(Role::Viewer)),
    ("put", "/v1/jobs/{id}/metadata", May::From(Role::Operator)),
    ("get", "/v1/jobs/{id}/events", May::From(Role::Viewer)),
    // Configurations may hold stream keys.
    ("get", "/v1/templates", May::From(Role::Operator)),
    ("post", "/v1/templates", May::From(Role::Operator)),
    ("get", "/v1/templates/{id}", May::From(Role::Operator)),
    ("put", "/v1/templates/{id}", May::From(Role::Operator)),
    ("delete", "/v1/templates/{id}", May::From(Role::Operator)),
    ("get", "/ui", May::From(Role::Viewer)),
    // Agents prove themselves in their hello.
    ("get", "/agent", May::Anybody),
    ("get", "/v1/campaigns", May::From(Role::Viewer)),
    ("post", "/v1/campaigns", May::From(Role::Operator)),
    ("get", "/v1/campaigns/{id}", May::From(Role::Viewer)),
    ("patch", "/v1/campaigns/{id}", May::From(Role::Operator)),
    ("get", "/v1/clips", May::From(Role::Viewer)),
    ("post", "/v1/clips", May::From(Role::Operator)),
    ("get", "/v1/clips/{id}", May::From(Role::Viewer)),
    ("patch", "/v1/clips/{id}", May::From(Role::Operator)),
    ("get", "/v1/publish-logs", May::From(Role::Viewer)),
    ("post", "/v1/publish-logs", May::From(Role::Operator)),
    ("get", "/v1/publish-logs/{id}", May::From(Role::Viewer)),
    ("patch", "/v1/publish-logs/{id}", May::From(Role::Operator)),
];

/// A token by its name.
fn secret(name: &str) -> String {
    format!("{name}-0123456789abcdef")
}

on_both! {
    async fn every_route_is_open_to_whom_it_was_decided_and_to_nobody_else(world) {
        let roles = [("viewer", Role::Viewer), ("operator", Role::Operator), ("admin", Role::Admin)];
        let token = |(name, role): (&str, Role)| Token { name: name.to_owned(), role, token: secret(name).into() };
        world.config.http.requests_per_second = 100_000;
        for open in [false, true] {
            // The token `removed` was one of them before.
            world.config.auth.tokens = roles.into_iter().chain([("removed", Role::Admin)]).map(token).collect();
            world.start_still().await;
            world.stop().await;
            world.config.auth.tokens.pop();
            if open {
                world.config.auth.tokens.clear();
            }
            world.start_still().await;
            let http = reqwest::Client::new();
            let base = format!("http://{}", address(&world));
            let document = http.get(format!("{base}/openapi.json")).send().await.expect("an answer").text().await.expect("a body");
            let document: Value = serde_json::from_str(&document).expect("JSON");
            let routes: Vec<(String, String, bool)> = document["paths"].as_object().expect("paths").iter().flat_map(|(path, item)| {
                item.as_object().expect("methods").iter().map(|(method, operation)| (method.clone(), path.clone(), operation["security"] == json!([{}])))
            }).collect();
            for (method, path, _) in DECIDED {
                assert!(routes.iter().any(|route| (route.0.as_str(), route.1.as_str()) == (*method, *path)), "{method} {path} is gone");
            }
            for (method, path, declared_open) in &routes {
                let parameters = document["paths"][path][method]["parameters"].as_array().cloned().unwrap_or_default();
                for parameter in parameters.iter().filter(|parameter| parameter["in"] == "path") {
                    let name = parameter["name"].as_str().expect("a name");
                    assert!(path.contains(&format!("{{{name}}}")), "{method} {path}: `{name}` is no part of the path");
                }
                let decided = DECIDED.iter().find(|route| (route.0, route.1) == (method, path));
                let may = decided.unwrap_or_else(|| panic!("nobody has decided who may {method} {path}")).2;
                assert_eq!(*declared_open, may == May::Anybody, "{method} {path}: the document says who may");
                let ask = async |query: &str, headers: &[&str]| {
                    let verb: Method = method.to_uppercase().parse().expect("a method");
                    let mut request = http.request(verb, format!("{base}{}{query}", path.replace("{id}", "77").replace("{tokenId}", "77")));
                    for header in headers {
                        request = request.header("authorization", *header);
                    }
                    let answer = request.send().await.expect("an answer");
                    (answer.status().as_u16(), answer.text().await.unwrap_or_default())
                };
                let admin = format!("Bearer {}", secret("admin"));
                let in_query = format!("?token={0}&access_token={0}", secret("admin"));
                let strangers: Vec<(&str, &str, Vec<String>)> = vec![
                    ("none", "", vec![]),
                    ("wrong", "", vec!["Bearer 0123456789abcdef0123".to_owned()]),
                    ("removed", "", vec![format!("Bearer {}", secret("removed"))]),
                    ("empty", "", vec!["Bearer ".to_owned()]),
                    ("no scheme", "", vec![secret("admin")]),
                    ("basic", "", vec![format!("Basic {}", secret("admin"))]),
                    ("a name", "", vec!["Bearer admin".to_owned()]),
                    ("cut", "", vec![admin[..admin.len() - 1].to_owned()]),
                    ("longer", "", vec![format!("{admin}0")]),
                    ("another case", "", vec![format!("Bearer {}", secret("admin").to_uppercase())]),
                    ("two tokens", "", vec!["Bearer nonsense".to_owned(), admin.clone()]),
                    ("two tokens, good one first", "", vec![admin.clone(), "Bearer nonsense".to_owned()]),
                    ("in the query", &in_query, vec![]),
                ];
                for (state, query, headers) in &strangers {
                    let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
                    let (status, _) = ask(query, &headers).await;
                    let refused = status == 401;
                    assert_eq!(refused, !open && may != May::Anybody, "{method} {path}, {state}, open: {open}: {status}");
                }
                for (name, role) in roles {
                    let (status, said) = ask("", &[&format!("Bearer {}", secret(name))]).await;
                    let refused_for = match may { May::From(least) if !open && role < least => Some(least), _ => None };
                    assert_eq!(status == 403, refused_for.is_some(), "{method} {path}, {name}, open: {open}: {status}");
                    assert_ne!(status, 401, "{method} {path}, {name}");
                    if let Some(least) = refused_for {
                        let suffices = format!("with the role {}.", json!(least).as_str().expect("a name"));
                        assert!(said.contains(&suffices), "{method} {path}, {name}: {said}");
                    }
                }
            }
            world.stop().await;
        }
        world.start_still().await;
    }
}
