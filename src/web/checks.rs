//! Checking a body whole, so that the client hears of everything that is wrong with it at once.

use chrono::Datelike;

use crate::db::Timestamp;
use crate::problem::{FieldError, Problem};

/// What is wrong with a body so far.
#[derive(Default)]
pub struct Checks {
    faults: Vec<FieldError>,
    /// Before each field, e.g. `tasks[3].`.
    pub within: String,
}

impl Checks {
    pub fn refuse(&mut self, field: &str, message: impl Into<String>) {
        self.faults.push(FieldError { field: format!("{}{field}", self.within), message: message.into() });
    }

    pub fn text(&mut self, field: &str, text: Option<&str>, longest: usize) {
        if text.is_some_and(|text| text.trim().is_empty() || text.chars().count() > longest) {
            self.refuse(field, format!("takes 1 to {longest} characters, not all blank"));
        }
    }

    pub fn range(&mut self, field: &str, value: Option<i64>, (low, high): (i64, i64)) {
        if value.is_some_and(|value| !(low..=high).contains(&value)) {
            self.refuse(field, format!("takes a whole number from {low} to {high}"));
        }
    }

    /// A time that every part can write and read again.
    pub fn time(&mut self, field: &str, at: Option<Timestamp>) {
        if at.is_some_and(|at| !(1970..=9999).contains(&at.utc().year())) {
            self.refuse(field, "takes a time of the years 1970 to 9999");
        }
    }

    /// How many fields are wrong.
    pub fn count(&self) -> usize {
        self.faults.len()
    }

    pub fn done(self) -> Result<(), Problem> {
        if self.faults.is_empty() { Ok(()) } else { Err(Problem::invalid(self.faults)) }
    }
}
