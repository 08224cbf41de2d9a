//! Who may come in: bearer tokens with roles, or, without any token, whoever is on this machine.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use secrecy::ExposeSecret;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::actor::{Caller, Role};
use crate::config::Auth;
use crate::problem::Problem;

/// The tokens, by their hashes: the length of a token shows in no timing, and a memory dump holds none in clear.
pub struct Guard {
    tokens: Vec<([u8; 32], Caller)>,
}

impl Guard {
    pub fn new(auth: &Auth) -> Self {
        let known = |token: &crate::config::Token| {
            (hash(token.token.expose_secret()), Caller { name: token.name.clone(), role: token.role })
        };
        Self { tokens: auth.tokens.iter().map(known).collect() }
    }

    /// Whether anybody on this machine may do everything.
    fn is_open(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Compares with every token, whichever fits, so that the time tells nothing.
    fn find(&self, token: &str) -> Option<&Caller> {
        let presented = hash(token);
        self.tokens.iter().fold(
            None,
            |found, (known, caller)| {
                if bool::from(known.ct_eq(&presented)) { Some(caller) } else { found }
            },
        )
    }

    /// Who sent these headers, or what is wrong with the token: the challenge and a sentence.
    fn identify(&self, headers: &HeaderMap) -> Result<Caller, (&'static str, &'static str)> {
        if self.is_open() {
            return Ok(Caller { name: "local".to_owned(), role: Role::Admin });
        }
        let mut values = headers.get_all(header::AUTHORIZATION).iter();
        if let Some(token) = of_subprotocol(headers)
            && headers.get(header::AUTHORIZATION).is_none()
            && let Some(caller) = self.find(token)
        {
            return Ok(caller.clone());
        }
        let Some(value) = values.next() else {
            return Err(("Bearer realm=\"showrunner\"", "Send a token: `Authorization: Bearer <token>`."));
        };
        let only = values.next().is_none().then_some(value); // of two, nobody knows which one is meant
        let token = only.and_then(|value| value.to_str().ok()).and_then(|value| {
            let (scheme, token) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
        });
        token.and_then(|token| self.find(token)).cloned().ok_or((
            "Bearer realm=\"showrunner\", error=\"invalid_token\"",
            "The token is not one of those that `auth.tokens` of the configuration names.",
        ))
    }
}

/// A browser cannot send `Authorization` with a WebSocket; it names the token among its subprotocols, as
/// `bearer.<token>`.
fn of_subprotocol(headers: &HeaderMap) -> Option<&str> {
    let is_socket =
        headers.get(header::UPGRADE).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"));
    let protocols = headers.get(header::SEC_WEBSOCKET_PROTOCOL).filter(|_| is_socket)?.to_str().ok()?;
    protocols.split(',').find_map(|protocol| protocol.trim().strip_prefix("bearer."))
}

fn hash(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

fn unauthorized(challenge: &'static str, detail: &str) -> Response {
    let mut response = Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", detail).into_response();
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
    response
}

/// What takes more than its method does: it cannot be undone, or changes who has access. The routes ask for it too; here
/// it stands so that a refusal names the role that suffices.
const FOR_ADMINS: &[(Method, &str)] = &[
    (Method::DELETE, "/api/dlq"),
    (Method::DELETE, "/api/dlq/{id}"),
    (Method::POST, "/v1/agents/{id}/tokens"),
    (Method::DELETE, "/v1/agents/{id}/tokens/{tokenId}"),
];

/// The role that a method takes on a route; a route that needs more says so itself.
fn needed(method: &Method, route: &str) -> Role {
    if FOR_ADMINS.iter().any(|(known, path)| known == method && *path == route) {
        return Role::Admin;
    }
    if method.is_safe() { Role::Viewer } else { Role::Operator }
}

/// Lets in whoever may, and puts the [`Caller`] into the request.
pub async fn authenticate(State(guard): State<Arc<Guard>>, mut request: Request, next: Next) -> Response {
    let caller = match guard.identify(request.headers()) {
        Ok(caller) => caller,
        Err((challenge, detail)) => return unauthorized(challenge, detail),
    };
    let route = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
    if let Err(problem) = caller.require(needed(request.method(), route)) {
        return problem.into_response();
    }
    request.extensions_mut().insert(caller);
    next.run(request).await
}

/// Puts the [`Caller`] into the request where there is one, and lets everybody in: the route itself decides.
pub async fn recognize(State(guard): State<Arc<Guard>>, mut request: Request, next: Next) -> Response {
    if let Ok(caller) = guard.identify(request.headers()) {
        request.extensions_mut().insert(caller);
    }
    next.run(request).await
}

/// Where the API is open, a browser on this machine must not be made to use it for a stranger's page.
pub async fn check_loopback(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Response {
    if guard.is_open()
        && let Some(name) = foreign(&request)
    {
        let detail = format!(
            "Without tokens this service answers only on this machine and to its own pages; `{name}` says otherwise. \
             Use localhost, 127.0.0.1 or [::1], or set `auth.tokens` to use it by another name or from other pages."
        );
        return Problem::new(StatusCode::FORBIDDEN, "foreign-request", detail).into_response();
    }
    next.run(request).await
}

/// What tells that the request comes from elsewhere. `Host` and the target have to name this machine, else a rebound
/// DNS name reaches us; `Origin`, if sent, is the page's own address, which has to be ours; and a browser that says
/// that another site asked may have followed a link, but nothing more.
fn foreign(request: &Request) -> Option<&'static str> {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    if !is_loopback(host) {
        return Some("Host");
    }
    if request.uri().authority().is_some_and(|authority| !is_loopback(authority.as_str())) {
        return Some("the request's target");
    }
    let mut origins = request.headers().get_all(header::ORIGIN).iter();
    if !origins.all(|origin| origin.to_str().is_ok_and(|origin| is_origin_of(origin, host))) {
        return Some("Origin");
    }
    let says = |name, value| request.headers().get_all(name).iter().any(|said| said == value);
    let follows_a_link = request.method().is_safe() && says("sec-fetch-mode", "navigate");
    let from_another_page = says("sec-fetch-site", "cross-site") || says("sec-fetch-site", "same-site");
    (from_another_page && !follows_a_link).then_some("Sec-Fetch-Site")
}

fn is_origin_of(origin: &str, host: &str) -> bool {
    let authority = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
    authority.is_some_and(|authority| authority.eq_ignore_ascii_case(host))
}

/// `localhost`, `127.0.0.1` or `[::1]`, with or without a port.
fn is_loopback(authority: &str) -> bool {
    let (name, port) = match authority.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((name, port)) => (name, port),
            None => return false,
        },
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    let is_port = |port: &str| port.bytes().all(|digit| digit.is_ascii_digit()) && port.parse::<u16>().is_ok();
    let port_is_well_formed = port.is_empty() || port.strip_prefix(':').is_some_and(is_port);
    let is_this_machine =
        name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    port_is_well_formed && is_this_machine
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_loopback() {
        for name in ["localhost", "LOCALHOST:8000", "127.0.0.1", "127.0.0.1:80", "[::1]", "[::1]:8000", "127.9.9.9:1"] {
            assert!(is_loopback(name), "{name}");
        }
        for name in [
            "",
            "evil.example",
            "localhost.evil.example",
            "evil.example:8000",
            "127.0.0.1.evil.example",
            "[::1",
            "10.0.0.1",
            "localhost:x",
            "localhost:",
            "localhost:+80",
            "localhost.",
            "user@localhost",
            "[::1]x",
            "0.0.0.0",
            "127.0.0.1:8000:9",
        ] {
            assert!(!is_loopback(name), "{name}");
        }
        assert!(is_origin_of("http://LOCALHOST:8000", "localhost:8000"));
        for origin in
            ["null", "http://evil.example", "http://localhost:3000", "localhost:8000", "file://localhost:8000"]
        {
            assert!(!is_origin_of(origin, "localhost:8000"), "{origin}");
        }
    }
}
