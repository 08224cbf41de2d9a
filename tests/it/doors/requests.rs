//! Requests as no client of good faith sends them, byte by byte.

use std::net::SocketAddr;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::address;
use crate::on_both;

const HOST: &str = "Host: localhost\r\n";

/// Sends these bytes and reads until the service closes; returns everything it said.
async fn raw(to: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = tokio::net::TcpStream::connect(to).await.expect("a connection");
    let _ = stream.write_all(bytes).await; // it may refuse before it has read all
    let mut said = Vec::new();
    let patience = std::time::Duration::from_secs(20);
    let _ = tokio::time::timeout(patience, stream.read_to_end(&mut said)).await.expect("the service ends it");
    String::from_utf8_lossy(&said).into_owned()
}

/// The statuses of the answers, in order.
fn statuses(said: &str) -> Vec<u16> {
    let answers = said.match_indices("HTTP/1.").map(|(at, _)| &said[at..]);
    answers.filter_map(|answer| answer.get(9..12)?.parse().ok()).collect()
}

/// One GET, or another method, with its headers as they are.
fn ask(method: &str, target: &str, headers: &str) -> Vec<u8> {
    format!("{method} {target} HTTP/1.1\r\n{headers}Connection: close\r\n\r\n").into_bytes()
}

/// A POST of a clip with the body as it is.
fn post(headers: &str, body: &[u8]) -> Vec<u8> {
    let mut bytes =
        format!("POST /v1/clips HTTP/1.1\r\n{HOST}Content-Type: application/json\r\n{headers}").into_bytes();
    bytes.extend(b"Connection: close\r\n\r\n");
    bytes.extend(body);
    bytes
}

fn sized(body: &[u8]) -> Vec<u8> {
    post(&format!("Content-Length: {}\r\n", body.len()), body)
}

on_both! {
    async fn an_open_door_answers_only_this_machine_and_its_own_pages(world) {
        world.start_still().await;
        let to = address(&world);
        let own = format!("http://localhost:{}", to.port());
        let here = format!("Host: localhost:{}\r\n", to.port());
        for (what, method, target, headers, status) in [
            ("plain", "GET", "/v1/cycles", HOST.to_owned(), 200),
            ("upper case", "GET", "/v1/cycles", "Host: LOCALHOST:1\r\n".to_owned(), 200),
            ("IPv6", "GET", "/v1/cycles", "Host: [::1]:8000\r\n".to_owned(), 200),
            ("no host", "GET", "/v1/cycles", String::new(), 400),
            ("two hosts", "GET", "/v1/cycles", format!("{HOST}Host: evil.example\r\n"), 400),
            ("two hosts, ours last", "GET", "/v1/cycles", format!("Host: evil.example\r\n{HOST}"), 400),
            ("the same host twice", "GET", "/v1/cycles", format!("{HOST}{HOST}"), 400),
            ("a rebound name", "GET", "/v1/cycles", "Host: evil.example:8000\r\n".to_owned(), 403),
            ("a longer name", "GET", "/v1/cycles", "Host: localhost.evil.com\r\n".to_owned(), 403),
            ("a trailing dot", "GET", "/v1/cycles", "Host: localhost.\r\n".to_owned(), 403),
            ("a user", "GET", "/v1/cycles", "Host: evil@localhost\r\n".to_owned(), 403),
            ("empty", "GET", "/v1/cycles", "Host: \r\n".to_owned(), 403),
            ("a signed port", "GET", "/v1/cycles", "Host: localhost:+80\r\n".to_owned(), 403),
            ("a foreign target", "GET", "http://evil.example/v1/cycles", HOST.to_owned(), 403),
            ("a target with a user", "GET", "http://localhost@evil.example/v1/cycles", HOST.to_owned(), 403),
            ("our target for a foreign host", "GET", "http://localhost/v1/cycles", "Host: evil.example\r\n".to_owned(), 403),
            ("our target", "GET", "http://localhost/v1/cycles", HOST.to_owned(), 200),
            ("our page", "POST", "/orchestrator/disable", format!("{here}Origin: {own}\r\nSec-Fetch-Site: same-origin\r\n"), 200),
            ("no origin", "POST", "/orchestrator/disable", format!("{HOST}Origin: null\r\n"), 403),
            ("another site", "POST", "/orchestrator/disable", format!("{HOST}Origin: http://evil.example\r\n"), 403),
            ("another page here", "POST", "/orchestrator/disable", format!("{here}Origin: http://localhost:3000\r\n"), 403),
            ("two origins", "POST", "/orchestrator/disable", format!("{here}Origin: {own}\r\nOrigin: null\r\n"), 403),
            ("a form elsewhere", "POST", "/orchestrator/disable", format!("{HOST}Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate\r\n"), 403),
            ("an image elsewhere", "GET", "/v1/ledger/verify", format!("{HOST}Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: no-cors\r\n"), 403),
            ("a script of a sibling", "GET", "/v1/cycles", format!("{HOST}Sec-Fetch-Site: same-site\r\nSec-Fetch-Mode: cors\r\n"), 403),
            ("a link elsewhere", "GET", "/", format!("{HOST}Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate\r\n"), 200),
            ("a question before", "OPTIONS", "/v1/clips", format!("{HOST}Origin: http://evil.example\r\nAccess-Control-Request-Method: POST\r\n"), 403),
        ] {
            let said = raw(to, &ask(method, target, &headers)).await;
            assert_eq!(statuses(&said), [status], "{what}: {said}");
            assert!(!said.to_lowercase().contains("access-control-"), "{what}: no page elsewhere may read: {said}");
        }
    }

    async fn no_request_reads_as_two_and_none_past_its_bounds_gets_in(world) {
        world.start_still().await;
        let to = address(&world);
        let clip = br#"{"title":"a","media_uri":"x","visual_score":5}"#;
        let chunked = format!("{:x}\r\n{}\r\n0\r\n\r\n", clip.len(), String::from_utf8_lossy(clip));
        let then = "GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        let keep = |headers: &str, body: &str| format!("POST /v1/clips HTTP/1.1\r\n{HOST}Content-Type: application/json\r\n{headers}\r\n{body}{then}").into_bytes();
        let long = "a".repeat(40_000);
        let many: String = (0..150).map(|n| format!("X{n}: a\r\n")).collect();
        for (what, bytes, wanted) in [
            ("length and chunks: the last of its connection", keep("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", &chunked), vec![201]),
            ("chunks and length", keep("Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", &chunked), vec![201]),
            ("two lengths", post("Content-Length: 3\r\nContent-Length: 46\r\n", clip), vec![400]),
            ("a list of lengths", post("Content-Length: 46, 46\r\n", clip), vec![400]),
            ("a negative length", post("Content-Length: -1\r\n", clip), vec![400]),
            ("a signed length", post("Content-Length: +46\r\n", clip), vec![400]),
            ("an unknown coding", post("Transfer-Encoding: xchunked\r\n", clip), vec![400]),
            ("chunks not last", post("Transfer-Encoding: chunked, identity\r\n", clip), vec![400]),
            ("a chunk of 2^68", post("Transfer-Encoding: chunked\r\n", b"fffffffffffffffff\r\nx"), vec![400]),
            ("a chunk that lies", post("Transfer-Encoding: chunked\r\n", b"1\r\nxZZ0\r\n\r\n"), vec![400]),
            ("a trailer of 50 kB", post("Transfer-Encoding: chunked\r\n", format!("0\r\nX: {long}\r\n\r\n").as_bytes()), vec![400]),
            ("a long body announced", keep("Content-Length: 2000000\r\n", ""), vec![413]),
            ("a folded header", ask("GET", "/healthz", &format!("{HOST}X: a\r\n b\r\n")), vec![400]),
            ("a space before the colon", ask("GET", "/healthz", &format!("{HOST}X : a\r\n")), vec![400]),
            ("a NUL in a header", ask("GET", "/healthz", &format!("{HOST}X: a\0b\r\n")), vec![400]),
            ("a header of 40 kB", ask("GET", "/healthz", &format!("{HOST}X: {long}\r\n")), vec![431]),
            ("150 headers", ask("GET", "/healthz", &format!("{HOST}{many}")), vec![431]),
            ("a target of 40 kB", ask("GET", &format!("/healthz?{long}"), HOST), vec![431]),
            ("HTTP/1.0", format!("GET /healthz HTTP/1.0\r\n{HOST}\r\n").into_bytes(), vec![200]),
            ("HTTP/9.9", format!("GET /healthz HTTP/9.9\r\n{HOST}\r\n").into_bytes(), vec![400]),
            ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n".to_vec(), vec![400]),
            ("three at once", format!("GET /healthz HTTP/1.1\r\n{HOST}\r\nGET /nowhere HTTP/1.1\r\n{HOST}\r\n{then}").into_bytes(), vec![200, 404, 200]),
            ("TRACE", ask("TRACE", "/v1/cycles", HOST), vec![405]),
            ("CONNECT", ask("CONNECT", "localhost:80", HOST), vec![404]),
            ("OPTIONS", ask("OPTIONS", "/v1/cycles", HOST), vec![405]),
            ("a made-up method", ask("EVIL", "/v1/cycles", HOST), vec![405]),
            ("another method by header", ask("GET", "/orchestrator/enable", &format!("{HOST}X-HTTP-Method-Override: POST\r\n")), vec![405]),
            ("HEAD", ask("HEAD", "/v1/cycles", HOST), vec![200]),
            ("up and out", ask("GET", "/page/../Cargo.toml", HOST), vec![404]),
            ("up and out, encoded", ask("GET", "/page/%2e%2e%2fCargo.toml", HOST), vec![404]),
            ("up and out of the docs", ask("GET", "/docs/%2e%2e/%2e%2e/etc/passwd", HOST), vec![404]),
            ("two slashes", ask("GET", "//v1/cycles", HOST), vec![404]),
            ("an encoded slash", ask("GET", "/v1%2fcycles", HOST), vec![404]),
            ("an id that is none", ask("GET", "/v1/clips/1%2f..", HOST), vec![404]),
            ("an id past 64 bits", ask("GET", "/v1/clips/99999999999999999999", HOST), vec![404]),
            ("no UTF-8", ask("GET", "/v1/clips/%ff", HOST), vec![404]),
            ("a NUL", ask("GET", "/v1/ledger?actor=%00", HOST), vec![422]),
            ("NaN", ask("GET", "/v1/clips?min_visual_score=NaN", HOST), vec![422]),
            ("infinity", ask("GET", "/v1/clips?min_visual_score=-1e400", HOST), vec![422]),
            ("the end of time", ask("GET", "/v1/ledger?until=9999-12-31T23:59:59Z&since=0000-01-01T00:00:00Z", HOST), vec![200]),
        ] {
            let said = raw(to, &bytes).await;
            assert_eq!(statuses(&said), wanted, "{what}: {said}");
        }
        let metrics = raw(to, &ask("GET", "/metrics", HOST)).await;
        assert!(metrics.contains("method=\"OTHER\"") && metrics.contains("route=\"unmatched\""), "few labels");
        assert!(!metrics.contains("EVIL") && !metrics.contains("nowhere"), "no words of a stranger");
    }

    async fn no_body_breaks_the_door_and_none_is_half_understood(world) {
        world.start_still().await;
        let to = address(&world);
        let scored = |score: &str| format!(r#"{{"title":"a","media_uri":"x","visual_score":{score}}}"#).into_bytes();
        let titled = |title: &[u8]| [br#"{"media_uri":"x","visual_score":5,"title":""#, title, br#""}"#].concat();
        let deep = "[".repeat(100_000);
        let long_name = "x".repeat(1_000_000);
        for (what, body, wanted) in [
            ("nothing", Vec::new(), 400),
            ("deep lists", deep.clone().into_bytes(), 422),
            ("deep lists in a field", format!(r#"{{"title":{deep}"#).into_bytes(), 422),
            ("deep lists beside a NUL", format!(r#"{{"title":"\u0000","x":{deep}"#).into_bytes(), 400),
            ("deep objects", r#"{"a":"#.repeat(100_000).into_bytes(), 422),
            ("an endless number", scored("1e400"), 400),
            ("a number of 400 digits", scored(&"9".repeat(400)), 400),
            ("NaN", scored("NaN"), 400),
            ("infinity", scored("Infinity"), 400),
            ("past the bounds", scored("100.0000001"), 422),
            ("a text", scored("\"5\""), 422),
            ("null", scored("null"), 422),
            ("a key twice", br#"{"title":"a","title":"b","media_uri":"x","visual_score":5}"#.to_vec(), 422),
            ("no UTF-8", titled(b"\xff\xfe"), 400),
            ("overlong UTF-8", titled(b"\xc0\xaf"), 400),
            ("half a surrogate", titled(br"\ud800"), 400),
            ("a NUL", titled(br"a\u0000b"), 422),
            ("a raw NUL", titled(b"a\0b"), 400),
            ("UTF-16", "{\"title\"}".encode_utf16().flat_map(u16::to_le_bytes).collect(), 400),
            ("a mark before it", b"\xef\xbb\xbf{}".to_vec(), 400),
            ("only blanks", titled(b" \\n "), 422),
            ("a name of a megabyte", format!(r#"{{"{long_name}":1}}"#).into_bytes(), 422),
        ] {
            let said = raw(to, &sized(&body)).await;
            assert_eq!(statuses(&said), [wanted], "{what}: {}", &said[..said.len().min(500)]);
            assert!(said.len() < 4_000, "{what} is not sent back: {} bytes", said.len());
        }
        let clip = br#"{"title":"a","media_uri":"x","visual_score":5}"#;
        let coded = format!("Content-Length: {}\r\nContent-Encoding: gzip\r\n", clip.len());
        assert_eq!(statuses(&raw(to, &post(&coded, clip)).await), [415], "a coded body is not guessed at");
        assert_eq!(world.get("/v1/clips").await.1["items"], json!([]), "nothing of all that came in");
        assert_eq!(statuses(&raw(to, &sized(clip)).await), [201]);
    }
}
