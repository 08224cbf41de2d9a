//! Stories in the user's terms, through the public doors, on both databases.

mod floors;
mod heuristics;
mod instances;
mod platform;
mod support;
