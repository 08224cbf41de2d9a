//! Showrunner keeps a media platform running by itself: every two seconds it looks at everything the platform is
//! doing, decides by rules that operators write, acts, and writes down what it saw, what it did and why.
//!
//! The house has seven floors; imports go down only, and a test holds that.
//!
//! | floor | rooms | what lives there |
//! |---|---|---|
//! | 6 doors | [`cli`], [`http`], [`dashboard`], [`app`] | the ways in; `app` builds, starts and stops everything in order |
//! | 5 loop | [`control`] | monitor → decider → executor, run by the runner under a leader's lease |
//! | 4 planes | [`planes::publishing`], [`planes::pipelines`], [`planes::fleet`] | clips, campaigns and publications; runs of steps; streams on agents |
//! | 3 work | [`planes::queue`] | durable jobs; whatever leaves the process is one |
//! | 2 record | [`ledger`], [`events`] | the audit chain; what happened, stored and told |
//! | 1 store | [`db`], [`storage`], [`web`] | SQLite and PostgreSQL behind one face; where large values are kept; what routes are made of |
//! | 0 ground | [`config`], [`clock`], [`random`], [`backoff`], [`telemetry`], [`problem`], [`actor`], [`panic`] | no import from above |

pub mod actor;
pub mod app;
pub mod backoff;
pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod dashboard;
pub mod db;
pub mod events;
pub mod http;
pub mod ledger;
pub mod panic;
pub mod planes;
pub mod problem;
pub mod random;
pub mod storage;
pub mod telemetry;
pub mod web;

#[cfg(test)]
#[path = "../tests/it/support/postgres.rs"]
mod test_postgres;
