//! Stories in the user's terms, through the public doors, on both databases.

mod actions;
mod docs;
mod floors;
mod governors;
mod heuristics;
mod instances;
mod ledger;
mod page;
mod platform;
mod publications;
mod restart;
mod rows;
mod rules;
mod simulation;
mod support;
