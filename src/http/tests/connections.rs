//! Connections past their bounds.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::*;

const MOMENT: Duration = Duration::from_millis(200);
const LONG: Duration = Duration::from_secs(600);

fn bounds() -> Bounds {
    Bounds { connections: 4, connections_of_one: 3, head_patience: LONG, write_patience: LONG }
}

/// Reads to the end: what the other side said before it closed.
async fn heard(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut bytes)).await;
    let _ = read.expect("the other side ends it");
    String::from_utf8(bytes).expect("text")
}

async fn connect_from(host: [u8; 4], to: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((host, 0).into())?;
    socket.connect(to).await
}

#[tokio::test]
async fn idle_connections_at_the_bound_get_others_a_named_answer_and_no_client_takes_every_place() {
    let doors = doors_within(bounds(), |_| {}, true).await;
    let mut idle = Vec::new();
    for _ in 0..3 {
        let mut stream = TcpStream::connect(doors.address).await.expect("connect");
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await.expect("write");
        let mut begin = [0; 12];
        stream.read_exact(&mut begin).await.expect("an answer");
        assert_eq!(&begin, b"HTTP/1.1 200");
        idle.push(stream);
    }
    let mut fourth = TcpStream::connect(doors.address).await.expect("connect");
    fourth.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await.expect("write");
    let said = heard(&mut fourth).await;
    assert!(said.starts_with("HTTP/1.1 503 ") && said.contains("retry-after: 1"), "{said}");
    assert!(said.contains("/problems/unavailable") && said.contains("Too many connections"), "{said}");
    // Another client still finds a place.
    let mut other = connect_from([127, 0, 0, 2], doors.address).await.expect("connect");
    other.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await.expect("write");
    assert!(heard(&mut other).await.starts_with("HTTP/1.1 200 "));
    // A place that was given up is free again.
    drop(idle.pop());
    let again = async {
        while doors.get("/healthz").await.status() != 200 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), again).await.expect("a place is free again");
}

#[tokio::test]
async fn who_sends_a_head_letter_by_letter_is_cut_off() {
    let doors = doors_within(Bounds { head_patience: MOMENT, ..bounds() }, |_| {}, true).await;
    let mut silent = TcpStream::connect(doors.address).await.expect("connect");
    assert_eq!(heard(&mut silent).await, "", "one that says nothing at all");
    let stream = TcpStream::connect(doors.address).await.expect("connect");
    let (mut from, mut to) = stream.into_split();
    let dripping = tokio::spawn(async move {
        for byte in b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: ".iter().chain([b'a'; 4000].iter()) {
            if to.write_all(&[*byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    let mut said = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(10), from.read_to_end(&mut said)).await.expect("it is cut off");
    dripping.abort();
    assert!(!said.starts_with(b"HTTP/1.1 200"));
}

#[tokio::test]
async fn a_body_that_stalls_is_the_clients_fault_and_ends_the_connection() {
    let doors = doors(|config| config.http.request_timeout_ms = 200).await;
    let mut stalled = TcpStream::connect(doors.address).await.expect("connect");
    let head = "POST /test/things HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
    stalled.write_all(format!("{head}Content-Length: 100\r\n\r\n{{").as_bytes()).await.expect("write");
    let said = heard(&mut stalled).await;
    assert!(said.starts_with("HTTP/1.1 408 ") && said.contains("/problems/body-stalled"), "{said}");
    problem(doors.get("/test/slow").await, 504).await;
}

#[tokio::test]
async fn who_takes_nothing_of_his_answer_is_cut_off() {
    let doors = doors_within(Bounds { write_patience: MOMENT, ..bounds() }, |_| {}, true).await;
    let mut greedy = TcpStream::connect(doors.address).await.expect("connect");
    // More answers than all buffers between us hold, and none of them read.
    let asking = async {
        loop {
            greedy.write_all(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n").await?;
        }
        #[allow(unreachable_code)]
        io::Result::Ok(())
    };
    let ended = tokio::time::timeout(Duration::from_secs(20), asking).await.expect("it is cut off");
    assert!(ended.is_err());
}
