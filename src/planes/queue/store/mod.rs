//! All of the queue's SQL. Statements follow the table of [`Status::on`](super::Status::on).
//!
//! | room | holds |
//! |---|---|
//! | `enqueue` | one job or thousands, and the keys that make enqueueing twice enqueueing once |
//! | `claim` | looking for work and taking it under a lease |
//! | `limit` | what may be taken where a queue, a task or a key has a limit |
//! | `finish` | heartbeats, progress, and every way in which a try ends |
//! | `order` | what is due, old, too much, or past its retention |
//! | `letters` | dead letters |
//! | `registry` | services, tasks, code versions, workers |
//! | `queues` | pausing, and limits |
//! | `watch` | what the loop reads, and checks before it acts |
//! | `read` | jobs, tries and counts as people and programs ask for them |

pub(super) mod claim;
pub(super) mod enqueue;
pub(super) mod finish;
pub(super) mod letters;
pub(super) mod limit;
pub(super) mod order;
pub(super) mod queues;
pub(super) mod read;
pub(super) mod registry;
pub(super) mod watch;

/// Rows that one statement of upkeep touches at most, so that it never holds its locks for long.
pub(in crate::planes::queue) const BATCH: i64 = 1_000;
