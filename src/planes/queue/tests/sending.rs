//! Tasks go out to services that have an endpoint.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use axum::http::StatusCode;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::super::store::registry::TaskSettings;
use super::super::*;
use super::{World, in_each_world};
use crate::clock::SystemClock;
use crate::config::Config;
use crate::db::{Db, Faults, Point, Topic};
use crate::storage::Stores;

/// Counts looks for services, and begins to hint in the middle of the first: whoever is served is looked for again.
struct Looks {
    count: AtomicU64,
    db: Db,
}

#[async_trait]
impl Faults for Looks {
    async fn strike(&self, point: Point<'_>) -> crate::db::Result<()> {
        if matches!(point, Point::Statement(text) if text.contains("FROM services")) {
            self.count.fetch_add(1, Ordering::SeqCst);
        }
        if matches!(point, Point::Statement(text) if text.contains("AS held_back")) && self.count() < 5 {
            self.db.wake(Topic::Jobs).await;
        }
        Ok(())
    }
}

impl Looks {
    fn count(&self) -> u64 {
        self.count.load(Ordering::SeqCst)
    }
}

/// The dispatcher over `db`, and what stops it.
fn dispatcher(world: &World, db: Db) -> (tokio::task::JoinHandle<()>, CancellationToken) {
    let mut config = Config { secret_key: "0123456789abcdef".repeat(4).into(), ..Config::default() };
    config.queue.poll_interval_ms = 60_000;
    let stop = CancellationToken::new();
    let stores = Stores::open(&config.storage).expect("stores");
    let queue =
        TaskQueue::new(&config, db, SystemClock::shared(), world.random.clone(), stores, stop.clone()).expect("it");
    (tokio::spawn(Dispatcher::new(queue).run(stop.clone())), stop)
}

/// Registers services, each with a task of its own name at this endpoint.
async fn services_at(world: &World, endpoint: &str, services: &[&str]) {
    let mut tx = world.begin().await;
    for service in services {
        let registration = Registration {
            service: (*service).to_owned(),
            name: (*service).to_owned(),
            version: None,
            endpoint: Some(endpoint.to_owned()),
            tasks: vec![TaskRegistration {
                id: (*service).to_owned(),
                code_hash: None,
                settings: TaskSettings::default(),
            }],
        };
        register(&mut tx, &registration).await.expect("registered");
    }
    tx.commit().await.expect("commit");
}

#[tokio::test]
async fn services_without_work_are_left_in_peace() {
    in_each_world(async |world| {
        services_at(&world, "http://127.0.0.1:9/", &["one", "two", "three"]).await;
        let looks = Arc::new(Looks { count: AtomicU64::new(0), db: world.db.clone() });
        let (dispatcher, stop) = dispatcher(&world, world.db.clone().with_faults(looks.clone()));
        while looks.count() < 5 {
            tokio::task::yield_now().await;
        }
        // Who goes on looking would look a hundred times meanwhile.
        for _ in 0..1_000 {
            world.number("SELECT COUNT(*) FROM services").await;
        }
        assert!(looks.count() < 20, "{} looks", looks.count());
        stop.cancel();
        dispatcher.await.expect("it stops");
    })
    .await;
}

/// An endpoint that has no room: the first time for an hour, later for it does not say how long.
async fn full_endpoint(calls: mpsc::UnboundedSender<u64>) -> String {
    let (listener, count) = (TcpListener::bind("127.0.0.1:0").await.expect("a port"), Arc::new(AtomicU64::new(0)));
    let address = listener.local_addr().expect("an address");
    let refuse = move || {
        let (calls, number) = (calls.clone(), count.fetch_add(1, Ordering::SeqCst));
        async move {
            let _ = calls.send(number);
            let wait = (number > 0).then_some([("retry-after", "3600")]);
            (StatusCode::SERVICE_UNAVAILABLE, wait, ())
        }
    };
    let doors = axum::Router::new().fallback(refuse);
    tokio::spawn(async move { axum::serve(listener, doors).await });
    format!("http://{address}/")
}

#[tokio::test]
async fn a_full_endpoint_is_left_alone_for_as_long_as_it_says() {
    in_each_world(async |world| {
        let (said, mut calls) = mpsc::unbounded_channel();
        services_at(&world, &full_endpoint(said).await, &["full", "idle"]).await;
        let id = world.enqueue(NewJob::new("full")).await.id;
        let (dispatcher, stop) = dispatcher(&world, world.db.clone());
        assert_eq!(calls.recv().await, Some(0));
        assert_eq!(calls.recv().await, Some(1), "it is asked again long before the next look, and says for how long");
        let mut tries = 0;
        while world.status(id).await != Status::Pending {
            tries += 1;
            assert!(tries < 10_000, "the run goes back");
        }
        for _ in 0..50 {
            world.db.wake(Topic::Jobs).await;
            world.number("SELECT COUNT(*) FROM services").await;
        }
        assert!(calls.try_recv().is_err(), "whatever hints come meanwhile");
        assert_eq!(world.get(id).await.attempt, 0, "none of it costs a try");
        stop.cancel();
        dispatcher.await.expect("it stops");
    })
    .await;
}

/// Fails the first read of a task.
#[derive(Default)]
struct FirstReadFails(AtomicU64);

#[async_trait]
impl Faults for FirstReadFails {
    async fn strike(&self, point: Point<'_>) -> crate::db::Result<()> {
        let is_read = matches!(point, Point::Statement(text) if text == "SELECT * FROM tasks WHERE id = $1");
        if is_read && self.0.fetch_add(1, Ordering::SeqCst) == 0 {
            return Err(crate::db::Error::Unavailable("for a moment".to_owned()));
        }
        Ok(())
    }
}

/// An endpoint that takes whatever comes.
async fn willing_endpoint(calls: mpsc::UnboundedSender<()>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let accept = move || {
        let _ = calls.send(());
        async { StatusCode::OK }
    };
    let doors = axum::Router::new().fallback(accept);
    tokio::spawn(async move { axum::serve(listener, doors).await });
    format!("http://{address}/")
}

#[tokio::test]
async fn a_run_that_cannot_be_made_ready_goes_back_and_costs_no_try() {
    in_each_world(async |world| {
        let (said, mut calls) = mpsc::unbounded_channel();
        services_at(&world, &willing_endpoint(said).await, &["one"]).await;
        let id = world.enqueue(NewJob { max_attempts: Some(1), ..NewJob::new("one") }).await.id;
        let faults = Arc::new(FirstReadFails::default());
        let (dispatcher, stop) = dispatcher(&world, world.db.clone().with_faults(faults));
        assert_eq!(calls.recv().await, Some(()));
        let row = world.get(id).await;
        assert_eq!((row.status, row.attempt, row.lease), (Status::Processing, 1, 3), "given back in between");
        stop.cancel();
        dispatcher.await.expect("it stops");
    })
    .await;
}
