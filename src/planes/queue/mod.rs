//! The queue: durable jobs, the one plane that others may use. Whatever leaves the process is a job.
//!
//! A job is enqueued inside the transaction that wants it ([`enqueue`]), claimed in batches under a lease
//! ([`store::claim`]), run by the [`Handler`] of its kind in a [`worker`], and finished in a transaction that still
//! holds the lease ([`complete`], [`fail`]). A lease that lapses is rescued: the job is tried again, or failed when
//! it has no try left. The lease number grows with every hand-over and fences late answers.
//!
//! | room | holds |
//! |---|---|
//! | `model` | a job and its state machine |
//! | `store` | all of the queue's SQL |
//! | `worker` | claiming, running, renewing, rescuing |
//! | `observe` | the section `jobs` of the snapshot |
//! | `act` | `rebalance_queue` |

pub mod act;
mod model;
mod observe;
mod store;
mod worker;

pub use model::{Event, IllegalTransition, Job, NewJob, Status};
pub use observe::{JobsSection, observe};
pub use store::{Enqueued, complete, enqueue, fail, forget_finished, get};
pub use worker::{Handler, Outcome, Worker, WorkerOptions};
