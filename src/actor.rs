//! Who does something: written into the ledger, and checked at the doors.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Who did something. Written as `loop`, `system` or `operator:<name>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Actor {
    /// The control loop, by its rules.
    Loop,
    /// The service itself: dispatch, upkeep, migration.
    System,
    /// A person or program that came in by a door.
    Operator(String),
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loop => f.write_str("loop"),
            Self::System => f.write_str("system"),
            Self::Operator(name) => write!(f, "operator:{name}"),
        }
    }
}

/// What a token may do. Each role may do what the ones before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Reads everything.
    Viewer,
    /// Also runs, enables and disables the loop, and creates and changes rows.
    Operator,
    /// Also whatever cannot be undone.
    Admin,
}

/// Who is behind a request; the doors put it into the request's extensions.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The token's name, or `local` where the API is open on loopback.
    pub name: String,
    /// What the token may do.
    pub role: Role,
}

impl Caller {
    /// The caller as an actor of the ledger.
    pub fn actor(&self) -> Actor {
        Actor::Operator(self.name.clone())
    }
}
