//! Receivers that are slow, silent, broken or hostile, each on a socket of its own.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use showrunner::clock::SystemClock;
use showrunner::config;
use showrunner::planes::publishing::connectors::webhook::Webhook;
use showrunner::planes::publishing::connectors::{Answer, Connector, PublishRequest, StatusAnswer, Until};

/// What a call may take here.
const TIMEOUT: Duration = Duration::from_secs(2);

fn webhook(url: &str) -> Webhook {
    let config = config::Webhook {
        url: format!("{url}/publish"),
        status_url: format!("{url}/publications/{{key}}"),
        secret: "whsec_dHdlbnR5LWZvdXIgYnl0ZXMgYXQgbGVhc3Q=".into(),
    };
    Webhook::new(&config, TIMEOUT, SystemClock::shared()).expect("a webhook")
}

fn request() -> PublishRequest {
    PublishRequest {
        idempotency_key: "k".to_owned(),
        publication_id: 7,
        platform: "tiktok".to_owned(),
        campaign_id: None,
        clip_id: 12,
        title: "a clip".to_owned(),
        media_uri: "s3://clips/12.mp4".to_owned(),
        duration_ms: None,
        retry_count: 0,
    }
}

/// Serves every connection by `script`, in a thread; returns the URL.
fn server(script: impl Fn(TcpStream) + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let script = Arc::new(script);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let script = script.clone();
            std::thread::spawn(move || script(stream));
        }
    });
    url
}

/// Reads a request to the end of its body, which is JSON without nested line breaks and ends in `}`.
fn read_request(stream: &mut TcpStream) {
    let (mut all, mut piece) = (Vec::new(), [0_u8; 4096]);
    while let Ok(length @ 1..) = stream.read(&mut piece) {
        all.extend_from_slice(&piece[..length]);
        let head = all.windows(4).position(|four| four == b"\r\n\r\n");
        if head.is_some_and(|head| all.starts_with(b"GET") || all[head..].ends_with(b"}")) {
            return;
        }
    }
}

/// Answers with these bytes once the request is read, and closes.
fn canned(answer: impl Into<Vec<u8>>) -> String {
    let answer = answer.into();
    server(move |mut stream| {
        read_request(&mut stream);
        let _ = stream.write_all(&answer);
        let _ = stream.shutdown(Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
    })
}

async fn publish(url: &str) -> Answer {
    let began = tokio::time::Instant::now();
    let answer = webhook(url).publish(&request()).await;
    assert!(began.elapsed() < TIMEOUT * 4, "{answer:?} took {:?}", began.elapsed());
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_is_judged_by_what_it_proves() {
    let accepted = [
        "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.0 200 OK\r\n\r\n{}",
        "HTTP/1.1 204 No Content\r\n\r\n",
    ];
    for answer in accepted {
        assert!(matches!(publish(&canned(answer)).await, Answer::Accepted { .. }), "{answer}");
    }
    // The head says that it was accepted; whatever the body is, it was.
    let bodies: [&[u8]; 4] = [
        b"HTTP/1.1 200 OK\r\ncontent-length: 4000\r\n\r\n{\"id\":\"cut sh",
        b"HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\n{\"id\":\"\xff\xfe\"}",
        b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 3\r\n\r\n\x1f\x8b\x08",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nnonsense\r\n",
    ];
    for answer in bodies {
        let accepted = Answer::Accepted { external_id: None, external_url: None };
        assert_eq!(publish(&canned(answer)).await, accepted, "{}", String::from_utf8_lossy(answer));
    }
    for status in ["500 Internal Server Error", "502 Bad Gateway", "503 Service Unavailable"] {
        let answer = publish(&canned(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n"))).await;
        assert!(matches!(&answer, Answer::NoAnswer { reason } if reason.contains(&status[..3])), "{answer:?}");
    }
    for nonsense in ["", "HTTP/1.1", "SSH-2.0-OpenSSH_9.2\r\n", "HTTP/1.1 999999 What\r\n\r\n"] {
        let answer = publish(&canned(nonsense)).await;
        assert!(matches!(answer, Answer::NoAnswer { .. }), "{nonsense}: {answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_after_is_taken_as_far_as_it_makes_sense() {
    let seconds = |seconds| Some(Until::After(Duration::from_secs(seconds)));
    let date = Some(Until::At("2036-11-21T07:28:00Z".parse().expect("a time")));
    let cases = [
        ("429", "retry-after: 3", seconds(3)),
        ("429", "retry-after: Fri, 21 Nov 2036 07:28:00 GMT", date),
        ("429", "retry-after: soon", seconds(60)),
        ("429", "retry-after: -5", seconds(60)),
        ("429", "retry-after: 315360000", seconds(315_360_000)),
        ("429", "retry-after: 99999999999999999999999", seconds(60)),
        ("429", "x: y", seconds(60)),
        ("503", "retry-after: 3", seconds(3)),
        ("503", "retry-after: soon", None),
    ];
    for (status, header, expected) in cases {
        let answer =
            publish(&canned(format!("HTTP/1.1 {status} Later\r\n{header}\r\ncontent-length: 0\r\n\r\n"))).await;
        match (&answer, expected) {
            (Answer::Throttled { until, .. }, Some(expected)) => assert_eq!(*until, expected, "{header}"),
            (Answer::NoAnswer { .. }, None) => {}
            _ => panic!("{status} {header}: {answer:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redirect_is_not_followed() {
    let asked = Arc::new(AtomicU64::new(0));
    let counted = asked.clone();
    let elsewhere = server(move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
    });
    for (status, refused) in [(301, true), (302, false), (303, false), (307, true), (308, true)] {
        let url = canned(format!(
            "HTTP/1.1 {status} Elsewhere\r\nlocation: {elsewhere}/new?token=hidden\r\ncontent-length: 0\r\n\r\n"
        ));
        let (answer, reason) = match publish(&url).await {
            Answer::Refused { reason } => (true, reason),
            Answer::NoAnswer { reason } => (false, reason),
            other => panic!("{status}: {other:?}"),
        };
        assert_eq!(answer, refused, "{status}");
        assert!(reason.contains(&format!("{elsewhere}/new")) && !reason.contains("hidden"), "{reason}");
        assert!(matches!(webhook(&url).status("tiktok", "k").await, StatusAnswer::NoAnswer { .. }));
    }
    assert_eq!(asked.load(Ordering::SeqCst), 0, "nothing signed went elsewhere");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_and_dripping_end_in_time() {
    // Accepted by the system, never by the program; and one that reads nothing.
    let unaccepted = TcpListener::bind("127.0.0.1:0").expect("a port");
    let unaccepted_url = format!("http://{}", unaccepted.local_addr().expect("an address"));
    let silent = server(|stream| {
        std::thread::sleep(TIMEOUT * 10); // the connection stays open, and nothing is said
        drop(stream);
    });
    let dripping_head = server(|mut stream| {
        read_request(&mut stream);
        for byte in b"HTTP/1.1 200 OK\r\nx-padding: ".iter().chain([b'x'; 200].iter()) {
            if stream.write_all(&[*byte]).is_err() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    let early = canned_before_reading("HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    let (one, two, three, four) =
        tokio::join!(publish(&unaccepted_url), publish(&silent), publish(&dripping_head), publish(&early));
    for answer in [one, two, three] {
        assert!(matches!(answer, Answer::NoAnswer { .. }), "{answer:?}");
    }
    assert!(matches!(four, Answer::Refused { .. } | Answer::NoAnswer { .. }), "{four:?}");

    // A body that drips takes nothing back: the head has accepted.
    let dripping_body = server(|mut stream| {
        read_request(&mut stream);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n");
        while stream.write_all(b" ").is_ok() {
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    let outer = tokio::time::timeout(TIMEOUT, webhook(&dripping_body).publish(&request())).await;
    assert!(matches!(outer, Ok(Answer::Accepted { .. })), "said before whoever calls gives up: {outer:?}");
    assert!(matches!(webhook(&dripping_body).status("tiktok", "k").await, StatusAnswer::NoAnswer { .. }));
}

fn canned_before_reading(answer: &'static str) -> String {
    server(move |mut stream| {
        let _ = stream.write_all(answer.as_bytes());
        let _ = stream.shutdown(Shutdown::Both);
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gigabyte_is_not_taken() {
    let sent = Arc::new(AtomicU64::new(0));
    let counted = sent.clone();
    let url = server(move |mut stream| {
        read_request(&mut stream);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2000000000\r\n\r\n");
        let piece = [b' '; 65_536];
        while stream.write_all(&piece).is_ok() {
            counted.fetch_add(piece.len() as u64, Ordering::SeqCst);
        }
    });
    assert!(matches!(publish(&url).await, Answer::Accepted { external_id: None, .. }));
    assert!(matches!(webhook(&url).status("tiktok", "k").await, StatusAnswer::NoAnswer { .. }));
    // What was not read lies in the buffers of the system.
    assert!(sent.load(Ordering::SeqCst) < 32 << 20, "{} bytes were taken", sent.load(Ordering::SeqCst));
    let endless_head = server(|mut stream| {
        read_request(&mut stream);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n");
        while stream.write_all(b"x-padding: xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\r\n").is_ok() {}
    });
    assert!(matches!(publish(&endless_head).await, Answer::NoAnswer { .. }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_not_there_or_shows_a_bad_certificate_is_sent_nothing() {
    let Answer::Refused { reason } = publish("http://no-such-host.invalid").await else { panic!("a host was found") };
    assert!(reason.contains("no connection"), "{reason}");
    let plain = canned_before_reading("HTTP/1.1 400 Bad Request\r\n\r\n");
    let Answer::Refused { reason } = publish(&plain.replace("http:", "https:")).await else {
        panic!("plain text was taken for TLS")
    };
    assert!(reason.contains("no connection"), "{reason}");

    let folder = tempfile::tempdir().expect("a folder");
    let place = |name: &str| folder.path().join(name).display().to_string();
    for (name, days) in [("self-signed", "2"), ("expired", "-2")] {
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", days])
            .args(["-addext", "subjectAltName=DNS:localhost", "-keyout", &place("key"), "-out", &place("certificate")])
            .stderr(Stdio::null())
            .status();
        if !made.is_ok_and(|status| status.success()) {
            eprintln!("skipped: no openssl that makes a certificate that is {name}");
            continue;
        }
        let port = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").port();
        let mut server = Command::new("openssl")
            .args(["s_server", "-quiet", "-www", "-accept", &port.to_string()])
            .args(["-key", &place("key"), "-cert", &place("certificate")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("openssl");
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            tokio::task::yield_now().await;
        }
        let answer = publish(&format!("https://localhost:{port}")).await;
        let _ = server.kill();
        let _ = server.wait();
        let Answer::Refused { reason } = answer else { panic!("{name}: {answer:?}") };
        assert!(reason.contains("certificate"), "{name}: {reason}");
    }
}
