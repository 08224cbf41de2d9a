//! Stories in the user's terms, through the public doors, on both databases.

mod actions;
mod docs;
mod floors;
mod governors;
mod heuristics;
mod instances;
mod page;
mod platform;
mod rules;
mod support;
