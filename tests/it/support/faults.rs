//! Database faults that stories switch on and off.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use showrunner::db::{Error, Faults, Point, Result};
use tokio::sync::Notify;

/// Fails every statement that contains a text, while there is one.
#[derive(Default)]
pub struct Failing {
    text: Mutex<Option<&'static str>>,
    struck: AtomicU32,
}

impl Failing {
    /// Faults that are off.
    pub fn none() -> Arc<Self> {
        Arc::default()
    }

    /// From now on statements that contain `text` fail; none does with `None`.
    pub fn set(&self, text: Option<&'static str>) {
        *self.text.lock().expect("a lock") = text;
    }

    /// How many statements were struck.
    pub fn struck(&self) -> u32 {
        self.struck.load(Ordering::SeqCst)
    }
}

#[async_trait]
impl Faults for Failing {
    async fn strike(&self, point: Point<'_>) -> Result<()> {
        let text = *self.text.lock().expect("a lock");
        match (point, text) {
            (Point::Statement(statement), Some(text)) if statement.contains(text) => {
                self.struck.fetch_add(1, Ordering::SeqCst);
                Err(Error::Unavailable("the story struck it".to_owned()))
            }
            _ => Ok(()),
        }
    }
}

/// Counts the statements that contain a text, and lets all of them go.
pub struct Counting {
    text: &'static str,
    met: AtomicU32,
}

impl Counting {
    /// None met yet.
    pub fn of(text: &'static str) -> Arc<Self> {
        Arc::new(Self { text, met: AtomicU32::new(0) })
    }

    /// How many came since this was last asked.
    pub fn met(&self) -> u32 {
        self.met.swap(0, Ordering::SeqCst)
    }
}

#[async_trait]
impl Faults for Counting {
    async fn strike(&self, point: Point<'_>) -> Result<()> {
        if matches!(point, Point::Statement(statement) if statement.contains(self.text)) {
            self.met.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    }
}

/// Holds back the first statement that contains a text, once armed, until it is let go.
pub struct Holding {
    text: &'static str,
    armed: AtomicBool,
    arrived: Notify,
    go: Notify,
}

impl Holding {
    /// Not armed yet.
    pub fn at(text: &'static str) -> Arc<Self> {
        Arc::new(Self { text, armed: AtomicBool::new(false), arrived: Notify::new(), go: Notify::new() })
    }

    /// From now on the next such statement is held.
    pub fn arm(&self) {
        self.armed.store(true, Ordering::SeqCst);
    }

    /// Waits until a statement is held.
    pub async fn held(&self) {
        let patience = std::time::Duration::from_secs(20);
        tokio::time::timeout(patience, self.arrived.notified()).await.expect("the statement comes");
    }

    /// Lets it go.
    pub fn let_go(&self) {
        self.go.notify_one();
    }
}

#[async_trait]
impl Faults for Holding {
    async fn strike(&self, point: Point<'_>) -> Result<()> {
        if let Point::Statement(statement) = point
            && statement.contains(self.text)
            && self.armed.swap(false, Ordering::SeqCst)
        {
            self.arrived.notify_one();
            self.go.notified().await;
        }
        Ok(())
    }
}
