//! Database faults that stories switch on and off.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use showrunner::db::{Error, Faults, Point, Result};

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
