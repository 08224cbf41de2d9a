//! PostgreSQL restarted, stopped, cut off and slow, on a cluster of the story's own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::cluster::Cluster;
use super::{PATIENCE, account, borrowed, chain_is_whole, cycle_after_now, load, serve, settings};
use crate::support::World;
use crate::support::process::Process;
use crate::support::receiver::Receiver;

async fn cluster() -> Option<Arc<Cluster>> {
    tokio::task::spawn_blocking(Cluster::start).await.expect("a start").map(Arc::new)
}

async fn control(cluster: &Arc<Cluster>, action: &'static str) {
    let cluster = cluster.clone();
    let done = tokio::task::spawn_blocking(move || cluster.control(action)).await.expect("pg_ctl");
    assert!(done, "pg_ctl {action}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_restarts_again_and_again_is_gone_on_with() {
    let Some(cluster) = cluster().await else { return };
    let mut world = World::at(cluster.url()).await;
    let receiver = Receiver::answering(Some(Duration::from_millis(20))).await;
    let settings = settings(&mut world, &receiver);
    let (one, two) = (serve(&world, &settings).await, serve(&world, &settings).await);
    cycle_after_now(&world).await;
    let mut publications = 0;
    for round in 0..6 {
        load(&world, 5).await;
        publications += 5;
        match round % 3 {
            0 => control(&cluster, "restart -m immediate").await,
            1 => control(&cluster, "restart -m fast").await,
            _ => {
                let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                           WHERE application_name = 'showrunner' AND pid <> pg_backend_pid()";
                world.try_sql(cut).await;
            }
        }
        let took = cycle_after_now(&world).await;
        eprintln!("round {round}: the next cycle ended {took:?} later");
    }

    // Away for longer: readiness and status say since when and why, and the ledger keeps it.
    control(&cluster, "stop -m fast").await;
    one.until("/readyz", 503, "; it fails since", PATIENCE).await;
    let problem = one.until("/orchestrator/status", 503, "not available since", PATIENCE).await;
    assert!(problem["detail"].as_str().is_some_and(|words| words.contains("goes on by itself")), "{problem}");
    tokio::time::sleep(Duration::from_secs(4)).await; // what is waited for is that time goes by without cycles
    control(&cluster, "start").await;
    cycle_after_now(&world).await;
    let status = one.until("/orchestrator/status", 200, "last_gap", PATIENCE).await;
    let gap = &status["last_gap"];
    assert!(gap["seconds"].as_u64().is_some_and(|seconds| seconds >= 4), "{gap}");
    assert!(gap["because"].is_string(), "{gap}");
    for process in [&one, &two] {
        process.until("/readyz", 200, "ok", PATIENCE).await;
    }
    account(&world, &receiver, publications).await;
    chain_is_whole(&one).await;
    assert_eq!((one.end("TERM").await, two.end("TERM").await), (Some(0), Some(0)));
}

/// Between the program and PostgreSQL: passes bytes on, each piece after a delay.
struct Wire {
    address: String,
    delay: Arc<AtomicU64>,
    /// How often it fell silent: a connection from before the last time passes nothing on any more and is never closed.
    silences: Arc<AtomicU64>,
}

impl Wire {
    async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let wire = Self { address, delay: Arc::default(), silences: Arc::default() };
        let (delay, silences) = (wire.delay.clone(), wire.silences.clone());
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let Ok(far) = TcpStream::connect(("127.0.0.1", port)).await else { continue };
                let (near, far) = (near.into_split(), far.into_split());
                let born = silences.load(Ordering::SeqCst);
                for (mut from, mut to) in [(near.0, far.1), (far.0, near.1)] {
                    let (delay, silences) = (delay.clone(), silences.clone());
                    tokio::spawn(async move {
                        let mut piece = [0_u8; 8192];
                        while let Ok(length) = from.read(&mut piece).await {
                            tokio::time::sleep(Duration::from_millis(delay.load(Ordering::SeqCst))).await;
                            if silences.load(Ordering::SeqCst) != born {
                                std::future::pending::<()>().await;
                            }
                            if length == 0 || to.write_all(&piece[..length]).await.is_err() {
                                break;
                            }
                        }
                        let _ = to.shutdown().await;
                    });
                }
            }
        });
        wire
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_server_and_one_that_falls_silent_are_gone_on_with() {
    let Some(mut world) = World::on_postgres().await else { return };
    let (place, database) = world.url().rsplit_once('/').expect("a URL with a database");
    let (login, place) = place.rsplit_once('@').expect("a URL with a user");
    let port = place.rsplit_once(':').map_or(5432, |(_, port)| port.parse().expect("a port"));
    let wire = Wire::to(port).await;
    let through = format!("{login}@{}/{database}", wire.address);
    let receiver = Receiver::answering(Some(Duration::from_millis(20))).await;
    let settings = settings(&mut world, &receiver);
    let process = Process::serve(&through, &borrowed(&settings)).await;
    load(&world, 5).await;
    cycle_after_now(&world).await;

    wire.delay.store(15, Ordering::SeqCst);
    let slow = cycle_after_now(&world).await;
    eprintln!("with 15 ms on each piece of the way the next cycle ended {slow:?} later");
    load(&world, 5).await;
    wire.delay.store(0, Ordering::SeqCst);
    cycle_after_now(&world).await;

    // Every open connection is cut off without a word, as by a firewall that forgot them: new ones get through.
    wire.silences.fetch_add(1, Ordering::SeqCst);
    load(&world, 5).await;
    let silent = cycle_after_now(&world).await;
    eprintln!("after every connection fell silent the next cycle ended {silent:?} later");
    process.until("/readyz", 200, "ok", PATIENCE).await;

    account(&world, &receiver, 15).await;
    chain_is_whole(&process).await;
    assert_eq!(process.end("TERM").await, Some(0));
    world.end().await;
}
