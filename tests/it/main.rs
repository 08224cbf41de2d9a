//! Stories in the user's terms, through the public doors, on both databases.

mod floors;
mod heuristics;
mod platform;
mod support;
