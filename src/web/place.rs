//! A connection's place among those that HTTP may have open.

use std::any::Any;
use std::sync::Arc;

/// Stands in a request's extensions. A route that takes the connection over keeps it for as long as the connection is to
/// count as one of HTTP.
#[derive(Clone)]
pub struct Place {
    _held: Arc<dyn Any + Send + Sync>,
}

impl Place {
    pub fn new(place: impl Any + Send + Sync) -> Self {
        Self { _held: Arc::new(place) }
    }
}
