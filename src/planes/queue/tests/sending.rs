//! Tasks go out to services that have an endpoint.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use super::super::store::registry::TaskSettings;
use super::super::*;
use super::in_each_world;
use crate::clock::SystemClock;
use crate::config::Config;
use crate::db::{Faults, Point, Topic};
use crate::storage::Stores;

/// Counts looks for services, and begins to hint in the middle of the first: whoever is served is looked for again.
struct Looks {
    count: AtomicU64,
    db: crate::db::Db,
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

#[tokio::test]
async fn services_without_work_are_left_in_peace() {
    in_each_world(async |world| {
        let mut tx = world.begin().await;
        for service in ["one", "two", "three"] {
            let task =
                TaskRegistration { id: format!("of-{service}"), code_hash: None, settings: TaskSettings::default() };
            let registration = Registration {
                service: service.to_owned(),
                name: service.to_owned(),
                version: None,
                endpoint: Some("http://127.0.0.1:9/".to_owned()),
                tasks: vec![task],
            };
            register(&mut tx, &registration).await.expect("registered");
        }
        tx.commit().await.expect("commit");
        let looks = Arc::new(Looks { count: AtomicU64::new(0), db: world.db.clone() });
        let db = world.db.clone().with_faults(looks.clone());
        let mut config = Config::default();
        config.secret_key = "0123456789abcdef".repeat(4).into();
        config.queue.poll_interval_ms = 60_000;
        let stop = CancellationToken::new();
        let stores = Stores::open(&config.storage).expect("stores");
        let queue =
            TaskQueue::new(&config, db, SystemClock::shared(), world.random.clone(), stores, stop.clone()).expect("it");
        let dispatcher = tokio::spawn(Dispatcher::new(queue).run(stop.clone()));
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
