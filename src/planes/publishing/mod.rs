//! The publishing plane.

mod observe;

pub use observe::*;
