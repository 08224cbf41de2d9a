//! The queue: durable jobs, the one plane that others may use. Whatever leaves the process is a job.
//!
//! A job is enqueued inside the transaction that wants it ([`enqueue`]), claimed in batches under a lease
//! ([`claim`]), run by the [`Handler`] of its kind in a [`Worker`] or by whoever else holds the lease, and finished in
//! a transaction that still holds it ([`complete`], [`fail`]). A lease that lapses is rescued: the job is tried again,
//! or failed when it has no try left. The lease number grows with every hand-over and fences late answers. What runs
//! out of tries becomes a dead letter, in the same transaction.
//!
//! A kind's row in `tasks` says how its jobs are run (tries, waits, time limit, heartbeat, limits); a kind without one
//! has the defaults. A queue's row in `queues` pauses or limits it; a queue needs none.
//!
//! | room | holds |
//! |---|---|
//! | `model` | the state machine |
//! | `job` | a job as it is enqueued, run and kept |
//! | `store` | all of the queue's SQL |
//! | `enqueuer` | enqueueing where many callers share a commit |
//! | `seats` | workers of this process that idle, for whom a job is claimed as it is enqueued |
//! | `worker` | claiming, running, renewing, rescuing in this process |
//! | `plane`, `routes` | its doors: clients that enqueue and ask, operators, workers on other machines |
//! | `dispatch` | sending tasks to the services that have an endpoint |
//! | `observe` | the sections `jobs`, `workers` and `dead_letters` of the snapshot |
//! | `act` | `rebalance_queue`, `retry_dead_letter`, `pause_queue`, `resume_queue`, `quarantine_worker` |

pub mod act;
mod dispatch;
mod enqueuer;
mod job;
mod model;
mod observe;
mod plane;
mod routes;
mod seats;
mod store;
mod worker;

#[cfg(test)]
mod tests;

pub use dispatch::{Assignment, Dispatcher};
pub use enqueuer::Enqueuer;
pub use job::{Attempt, Enqueued, Hold, Job, JobRecord, NewJob, own_key};
pub use model::{Event, IllegalTransition, Status};
pub use observe::{
    DeadLetterView, DeadLettersSection, JobsSection, Observed, QueueView, WorkerView, WorkersSection, observe,
};
pub use plane::TaskQueue;
pub use routes::{CodeVersion, routes, worker_routes};
pub use seats::Seats;
pub use store::claim::{Claim, Outlook, claim, claim_at_once, look};
pub use store::enqueue::{enqueue, enqueue_many};
pub use store::finish::{
    Again, Beat, Cancelled, acknowledge_cancel, cancel, complete, complete_many, fail, give_back, heartbeat, progress,
    renew, rescue, time_out,
};
pub use store::letters::{
    DeadLetter, DeadLetterFilter, RetryLetter, dead_letter, dead_letters, forget_dead_letters, purge_dead_letter,
    purge_dead_letters, retry_dead_letter, retry_dead_letters,
};
pub use store::limit::forget_rate_windows;
pub use store::order::forget_finished;
pub use store::queues::{QueueState, limit_queue, pause, queues, resume};
pub use store::read::{JobFilter, QueueCounts, attempts, counts, ended, get, list, why_waiting};
pub use store::registry::{
    CodeChange, Outcomes, Registration, Service, Task, TaskRegistration, TaskSettings, TaskVersion, WorkerRecord,
    WorkerSeen, forget_workers, held_by, holder_seen, lanes, note_outcomes, quarantine, register, service, services,
    set_task, task, task_history, tasks, worker_gone, worker_seen, workers,
};
pub use store::watch::{FIGURES, Figures};
pub use worker::{Handler, Outcome, Worker, WorkerOptions};
