//! What happened: transitions of the planes, stored and told to whoever listens.
//!
//! A plane [`record`]s events inside the transaction that changes something and wakes
//! [`Topic::Events`](crate::db::Topic) after its commit. The [`Monitor`] reads the table's end, its own events and
//! other instances' alike, and hands each to every [`Subscription`]; transient events, which are not stored, go the
//! same way. The ledger holds what the loop and operators did; this is what happened.
//!
//! | room | holds |
//! |---|---|
//! | `event` | an event, before and after it is stored, its place in the order, and filters |
//! | `store` | all SQL: record, read behind a place, list, forget |
//! | `bus` | subscribers and their bounded buffers |
//! | `monitor` | the tail of the table, transient events, engines |
//! | `backends` | subscribers that are always there: log and metrics |
//! | `severe` | severe events into the ledger, once and at a bounded rate |

mod backends;
mod bus;
mod event;
mod monitor;
mod severe;
mod store;

pub use crate::ledger::Severity;
pub use bus::{Received, Subscription};
pub use event::{Event, Filter, NewEvent, NotAPosition, Position, types};
pub use monitor::{Backends, Monitor};
pub use store::{Behind, behind, end, forget, forgotten, list, of_subject, place_of, record};
