//! Large values: kept wherever they belong, read back whole or not at all, and the keys to them shown to nobody.

use std::time::Duration;

use axum::body::Bytes;
use reqwest::{Method, Response};
use serde_json::{Value, json};
use showrunner::config::Config;
use showrunner::db::Timestamp;
use showrunner::storage::{BadToken, Error, Grant, LARGE, Registration, SecretKey, Stores, is_reference, key_of};

use crate::on_both;
use crate::support::World;
use crate::support::node;
use crate::support::process::Process;
use crate::support::s3::S3Server;

const KEY: &str = "8f1d3c5b7a9e2046f0d1c2b3a4958677e6f5d4c3b2a190817263544536271809";

/// A back end that speaks S3.
fn s3(id: &str, endpoint: &str, key: &str, secret: &str) -> Value {
    json!({
        "id": id, "provider": "minio", "endpoint": endpoint, "bucket": "clips",
        "credentials": { "accessKey": key, "secretKey": secret },
    })
}

fn stores(world: &World) -> &Stores {
    world.app.as_ref().expect("a service").stores()
}

async fn ask(world: &World, method: Method, path: &str, headers: &[(&str, &str)]) -> Response {
    let address = world.app.as_ref().and_then(|app| app.address()).expect("a listening service");
    let mut request = reqwest::Client::new().request(method, format!("http://{address}/api/storage/{path}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.send().await.expect("an answer")
}

fn header<'a>(response: &'a Response, name: &str) -> &'a str {
    response.headers().get(name).map_or("", |value| value.to_str().expect("text"))
}

/// What every back end does, whatever it is.
async fn works(world: &World, id: &str) {
    let store = stores(world).get(Some(id)).expect("a back end");
    let key = key_of("runs/12/out put ö.json").expect("a key");
    let path = format!("runs/12/out%20put%20%C3%B6.json?backend={id}");
    // Larger than any buffer on the way.
    let value: Vec<u8> = (0..5_000_000_u32).map(|n| (n % 251) as u8).collect();
    store.put(&key, Bytes::from(value.clone())).await.expect("put");

    let whole = ask(world, Method::GET, &path, &[]).await;
    assert_eq!(whole.status(), 200, "{id}");
    assert_eq!(header(&whole, "content-type"), "application/json");
    assert!(header(&whole, "content-disposition").starts_with("attachment; filename=\"out_put__.json\";"));
    assert_eq!(header(&whole, "content-length"), "5000000");
    assert_eq!(header(&whole, "content-security-policy"), "default-src 'none'; sandbox");
    let tag = header(&whole, "etag").to_owned();
    assert!(tag.starts_with('"') && tag.len() > 2, "{tag}");
    assert!(whole.bytes().await.expect("a body") == value[..]);

    let head = ask(world, Method::HEAD, &path, &[]).await;
    assert_eq!(
        (head.status().as_u16(), header(&head, "content-length"), header(&head, "etag")),
        (200, "5000000", &*tag)
    );
    for (range, first, last) in
        [("bytes=0-9", 0, 9), ("bytes=4999990-", 4_999_990, 4_999_999), ("bytes=-5", 4_999_995, 4_999_999)]
    {
        let part = ask(world, Method::GET, &path, &[("range", range)]).await;
        assert_eq!(part.status(), 206, "{id} {range}");
        assert_eq!(header(&part, "content-range"), format!("bytes {first}-{last}/5000000"));
        assert!(part.bytes().await.expect("a body") == value[first..=last]);
    }
    let outside = ask(world, Method::GET, &path, &[("range", "bytes=5000000-")]).await;
    assert_eq!((outside.status().as_u16(), header(&outside, "content-range")), (416, "bytes */5000000"));
    let several = ask(world, Method::GET, &path, &[("range", "bytes=0-1,4-5")]).await;
    assert_eq!(several.status(), 200);
    let unchanged = ask(world, Method::GET, &path, &[("if-none-match", &tag)]).await;
    assert_eq!((unchanged.status().as_u16(), header(&unchanged, "etag")), (304, &*tag));
    let other = ask(world, Method::GET, &path, &[("range", "bytes=0-9"), ("if-range", "\"other\"")]).await;
    assert_eq!(other.status(), 200);

    let copy = key_of("runs/12/copy.html").expect("a key");
    store.copy(&key, &copy).await.expect("copied");
    let below = key_of("runs/12").expect("a key");
    assert_eq!(store.list(&below, 10).await.expect("a list").len(), 2);
    assert_eq!(store.list(&below, 1).await.expect("a list").len(), 1);
    let page = ask(world, Method::GET, &format!("runs/12/copy.html?backend={id}"), &[]).await;
    assert_eq!((page.status().as_u16(), header(&page, "content-type")), (200, "application/octet-stream"));
    store.delete(&copy).await.expect("deleted");
    store.delete(&copy).await.expect("nothing to delete");
    let gone = ask(world, Method::GET, &format!("runs/12/copy.html?backend={id}"), &[]).await;
    assert_eq!((gone.status().as_u16(), header(&gone, "content-type")), (404, "application/problem+json"));

    let small = json!({ "a": "x".repeat(1_000) });
    let kept = stores(world).put_json_if_large(Some(id), "runs/12", small.clone()).await.expect("kept");
    assert_eq!(kept, small);
    let large = json!({ "a": "ö".repeat(LARGE), "n": 0.1 });
    let kept = stores(world).put_json_if_large(Some(id), "runs/12", large.clone()).await.expect("kept");
    assert!(is_reference(&kept) && !is_reference(&large), "{kept}");
    assert_eq!(
        (&kept["$storage"]["backend"], &kept["$storage"]["size"]),
        (&json!(id), &json!(large.to_string().len()))
    );
    assert_eq!(stores(world).resolve(kept.clone()).await.expect("resolved"), large);
    // What somebody else put in its place is not taken for it.
    let key = key_of(kept["$storage"]["key"].as_str().expect("a key")).expect("a key");
    for (other, why) in [
        (large.to_string().replacen('a', "b", 1), "digest"),
        (large.to_string() + " ", "longer"),
        ("{}".to_owned(), "shorter"),
    ] {
        store.put(&key, Bytes::from(other)).await.expect("put");
        let refused = stores(world).resolve(kept.clone()).await.expect_err(why);
        assert!(matches!(refused, Error::Changed { .. }) && refused.to_string().contains(why), "{refused}");
    }
    store.delete(&key).await.expect("deleted");
    assert!(matches!(stores(world).resolve(kept).await, Err(Error::NotFound { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_keeps_what_it_is_given_and_nothing_leads_out_of_it() {
    let mut world = World::on_sqlite().await;
    std::fs::write(world.folder().join("secret.txt"), "outside").expect("a file");
    world.start_still().await;
    works(&world, "local").await;
    for path in [
        "../secret.txt",
        "..%2fsecret.txt",
        "%2e%2e/secret.txt",
        "a/..%2f..%2fsecret.txt",
        "%2Fetc/passwd",
        "a%00b",
        "a//b",
    ] {
        // The client must not tidy it up.
        let address = world.app.as_ref().and_then(|app| app.address()).expect("a listening service");
        let said = tokio::task::spawn_blocking(move || {
            use std::io::{Read, Write};
            let mut stream = std::net::TcpStream::connect(address).expect("a connection");
            let head = format!("GET /api/storage/{path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
            stream.write_all(head.as_bytes()).expect("sent");
            let mut said = String::new();
            stream.read_to_string(&mut said).expect("an answer");
            said
        });
        let said = said.await.expect("an answer");
        assert!(said.starts_with("HTTP/1.1 404") && !said.contains("outside"), "{path}: {said}");
    }
    let unknown = ask(&world, Method::GET, "a?backend=nowhere", &[]).await;
    assert_eq!(unknown.status(), 404);
    assert!(unknown.text().await.expect("a body").contains("there are `local`"));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_speaks_s3_keeps_what_it_is_given_and_a_bad_one_is_a_clear_error() {
    let Some(server) = S3Server::start() else { return };
    let mut world = World::on_sqlite().await;
    let closed = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
    let backends = json!([
        s3("good", &server.endpoint, &server.access_key, &server.secret_key),
        s3("wrong-key", &server.endpoint, &server.access_key, "not-the-right-one"),
        s3("away", &format!("http://{closed}"), "k", "s"),
        { "id": "folder", "provider": "local", "path": world.folder().join("folder"), "isDefault": true },
    ]);
    world.config.storage.backends = backends.to_string().into();
    world.start_still().await;
    works(&world, "good").await;
    works(&world, "folder").await;
    // It verifies signatures: else the story above would prove little.
    for (id, said) in [("wrong-key", "refuses the service's credentials"), ("away", "does not answer")] {
        let bad = ask(&world, Method::GET, &format!("runs/12/a.json?backend={id}"), &[]).await;
        assert_eq!((bad.status().as_u16(), header(&bad, "content-type")), (502, "application/problem+json"), "{id}");
        let text = bad.text().await.expect("a body");
        assert!(text.contains(said) && text.contains(id), "{text}");
    }
    world.end().await;
}

#[test]
fn what_another_program_decrypts_is_what_was_granted() {
    let key = SecretKey::parse(&KEY.into()).expect("a good key").expect("a key");
    let mut config = Config::default();
    config.storage.backends =
        json!([s3("good", "http://127.0.0.1:9", "k", "hush-hush"), s3("other", "http://127.0.0.1:9", "k", "x")])
            .to_string()
            .into();
    let _ = rustls_provider();
    let stores = Stores::open(&config.storage).expect("back ends");
    let now: Timestamp = showrunner::clock::SystemClock::shared().now().into();
    let grant =
        Grant { run: "task-run:7".into(), lease: 3, backends: vec!["good".into()], life: Duration::from_secs(600) };
    let token = key.seal(&grant, &stores, now).expect("a token");
    let text = key.seal(&grant, &stores, now).expect("another");
    assert_ne!(token, text, "each has a nonce of its own");
    let opened = key.open(&token, now).expect("ours");
    assert_eq!((opened.run.as_str(), opened.lease, opened.exp - opened.iat), ("task-run:7", 3, 600));
    assert!(key.open(&token, now.after(Duration::from_secs(600))).is_none(), "it is over");
    assert!(matches!(
        key.seal(&Grant { backends: vec!["nowhere".into()], ..grant }, &stores, now),
        Err(Error::NoBackend { .. })
    ));

    let script = "
        import { jwtDecrypt } from 'jose';
        import { readFileSync } from 'node:fs';
        const { key, token } = JSON.parse(readFileSync(0, 'utf8'));
        const opened = await jwtDecrypt(token, Buffer.from(key, 'hex'), {
            issuer: 'showrunner', audience: 'worker', requiredClaims: ['exp', 'iat', 'run', 'lease'],
            keyManagementAlgorithms: ['dir'], contentEncryptionAlgorithms: ['A256GCM'] });
        console.log(JSON.stringify(opened.payload));";
    let Some(said) = node::run(script, &json!({ "key": KEY, "token": token }).to_string()) else { return };
    let said: Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!((&said["run"], &said["lease"]), (&json!("task-run:7"), &json!(3)));
    assert_eq!(said["backends"]["good"]["credentials"], json!({ "accessKey": "k", "secretKey": "hush-hush" }));
    assert_eq!(said["backends"].as_object().map(|backends| backends.len()), Some(1), "only what was granted");
}

fn rustls_provider() -> Result<(), std::sync::Arc<rustls::crypto::CryptoProvider>> {
    rustls::crypto::ring::default_provider().install_default() // once a process
}

on_both! {
    async fn a_registration_is_taken_once_whoever_signed_it(world) {
        let key = SecretKey::parse(&KEY.into()).expect("a good key").expect("a key");
        let at = world.db.now().await.expect("a time").utc().timestamp();
        let registration = Registration { iss: "worker-1".to_owned(), iat: at, exp: at + 60, jti: "one".to_owned() };
        let admit = async |token: &str, commits: bool| {
            let mut tx = world.db.begin().await.expect("a transaction");
            let admitted = key.admit(&mut tx, token).await;
            if commits {
                tx.commit().await.expect("a commit");
            }
            admitted
        };
        let token = key.sign(&registration);
        assert_eq!(admit(&token, false).await.expect("taken"), registration);
        assert_eq!(admit(&token, true).await.expect("what was rolled back was not used"), registration);
        assert!(matches!(admit(&token, true).await, Err(BadToken::Replayed)));
        let again = Registration { iat: at + 1, ..registration.clone() };
        assert!(matches!(admit(&key.sign(&again), true).await, Err(BadToken::Replayed)), "the same jti");
        let other = Registration { iss: "worker-2".to_owned(), ..registration.clone() };
        admit(&key.sign(&other), true).await.expect("another worker's own jti");
        // It is forgotten only when it could not be taken any longer.
        world.clock.advance(Duration::from_secs(89));
        showrunner::control::forget_old(&world.db, &world.config.retention).await.expect("retention");
        assert!(matches!(admit(&token, true).await, Err(BadToken::Replayed)));
        world.clock.advance(Duration::from_secs(1));
        assert!(matches!(admit(&token, true).await, Err(BadToken::Claims(_))));
        world.clock.advance(Duration::from_secs(600));
        showrunner::control::forget_old(&world.db, &world.config.retention).await.expect("retention");
        assert_eq!(world.number("SELECT COUNT(*) FROM used_tokens").await, 0);

        let at = at + 690;
        let script = "
            import { SignJWT } from 'jose';
            import { readFileSync } from 'node:fs';
            const { key, at } = JSON.parse(readFileSync(0, 'utf8'));
            const sign = (alg) => new SignJWT({}).setProtectedHeader({ alg, typ: 'JWT' }).setIssuer('node-worker')
                .setIssuedAt(at).setExpirationTime(at + 60).setJti('n-' + alg).sign(Buffer.from(key, 'hex'));
            console.log(JSON.stringify([await sign('HS256'), await sign('HS512').catch(() => 'x')]));";
        let input = json!({ "key": KEY, "at": at }).to_string();
        let signed = tokio::task::spawn_blocking(move || node::run(script, &input)).await.expect("a script");
        if let Some(signed) = signed {
            let [good, other]: [String; 2] = serde_json::from_str(&signed).expect("two tokens");
            assert_eq!(admit(&good, true).await.expect("taken").iss, "node-worker");
            assert!(matches!(admit(&other, true).await, Err(BadToken::Signature)));
        }
    }
}

/// Whatever the service says, to whomever, and whatever it keeps, holds none of its secrets.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_is_ever_shown() {
    let world = World::on_sqlite().await;
    let secrets = ["hush-hush-of-s3", KEY, "hush-hush-of-google"];
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
    // A server that sends back what it was sent, and worse.
    std::thread::spawn(move || {
        use std::io::{Read, Write};
        for stream in listener.incoming().map_while(Result::ok) {
            let mut stream = stream;
            let mut request = [0; 4096];
            let read = stream.read(&mut request).unwrap_or(0);
            let body = format!("{} hush-hush-of-s3", String::from_utf8_lossy(&request[..read]));
            let head = format!("HTTP/1.1 403 Forbidden\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
            let _ = stream.write_all(format!("{head}{body}").as_bytes());
        }
    });
    let backends = json!([s3("bad", &endpoint, "k", "hush-hush-of-s3")]).to_string();
    let environment = [("STORAGE_BACKENDS", &*backends), ("PIPEWEAVE_SECRET_KEY", KEY), ("LOG_LEVEL", "trace")];
    let process = Process::serve(world.url(), &environment).await;
    let mut shown = String::new();
    for path in [
        "/api/storage/a",
        "/v1/events",
        "/v1/ledger",
        "/orchestrator/snapshot",
        "/orchestrator/status",
        "/openapi.json",
    ] {
        shown += &process.get(path).await.to_string();
    }
    assert!(shown.contains("storage back end `bad` refuses"), "{shown}");
    shown += &process.log_with("a storage back end failed").await;
    shown += &process.log();
    process.end("TERM").await;
    let google = json!([{ "id": "g", "provider": "gcs", "bucket": "clips", "credentials": {
        "projectId": "p", "clientEmail": "e", "privateKey": "-----BEGIN PRIVATE KEY-----\nhush-hush-of-google\n" } }]);
    // That key cannot be read: what cannot be opened is said, without it.
    for arguments in [&["config", "show"][..], &["config", "show", "--json"], &["serve", "--port", "0"]] {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_showrunner"));
        command.env("PIPEWEAVE_SECRET_KEY", KEY).env("STORAGE_BACKENDS", google.to_string());
        let output = command.env("DATABASE_URL", world.url()).args(arguments).output().expect("the program runs");
        shown += &String::from_utf8_lossy(&[output.stdout, output.stderr].concat());
    }
    assert!(shown.contains("storage back end `g` cannot be opened"), "{shown}");
    for file in std::fs::read_dir(world.folder()).expect("a folder").flatten() {
        shown += &String::from_utf8_lossy(&std::fs::read(file.path()).unwrap_or_default());
    }
    for secret in secrets {
        assert!(!shown.contains(secret), "{secret} is shown");
        assert!(!shown.contains(&secret.to_uppercase()), "{secret} is shown");
    }
    world.end().await;
}
