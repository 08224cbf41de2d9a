//! One line a figure: what, measured, goal, met or missed.

use std::time::Instant;

/// What a figure should be.
#[derive(Clone, Copy)]
pub enum Goal {
    AtLeast(f64),
    AtMost(f64),
    /// Only told.
    None,
}

/// Prints the lines as they come, and the misses again at the end.
pub struct Report {
    /// Small counts: everything runs, the figures mean little.
    pub quick: bool,
    began: Instant,
    met: usize,
    missed: Vec<String>,
}

impl Report {
    pub fn begin(quick: bool) -> Self {
        println!("load before: {}", load());
        Self { quick, began: Instant::now(), met: 0, missed: Vec::new() }
    }

    /// `full`, or `quick` where only a quick run was asked for.
    pub fn count(&self, full: usize, quick: usize) -> usize {
        if self.quick { quick } else { full }
    }

    pub fn part(&self, title: &str) {
        println!("\n{title}\n");
        println!("| figure | measured | goal | |");
        println!("|---|---:|---:|---|");
    }

    pub fn figure(&mut self, what: &str, value: f64, unit: &str, goal: Goal) {
        let (wanted, met) = match goal {
            Goal::AtLeast(least) => (format!("≥ {}", number(least)), Some(value >= least)),
            Goal::AtMost(most) => (format!("≤ {}", number(most)), Some(value <= most)),
            Goal::None => (String::new(), None),
        };
        let verdict = match met {
            Some(true) => "met",
            Some(false) => "**missed**",
            None => "",
        };
        let line = format!("| {what} | {} {unit} | {wanted} | {verdict} |", number(value));
        println!("{line}");
        match met {
            Some(true) => self.met += 1,
            Some(false) => self.missed.push(line),
            None => {}
        }
    }

    pub fn end(self) {
        let took = self.began.elapsed().as_secs();
        println!("\n{} met, {} missed; {took} s; load after: {}", self.met, self.missed.len(), load());
        for line in self.missed {
            println!("{line}");
        }
    }
}

/// Three figures that count; large numbers in groups.
fn number(value: f64) -> String {
    if value >= 100.0 {
        let digits = format!("{value:.0}");
        let mut text = String::new();
        for (place, digit) in digits.chars().enumerate() {
            if place > 0 && (digits.len() - place) % 3 == 0 {
                text.push(',');
            }
            text.push(digit);
        }
        return text;
    }
    let text = if value >= 10.0 { format!("{value:.1}") } else { format!("{value:.2}") };
    text.strip_suffix(".00").or(text.strip_suffix(".0")).map_or(text.clone(), str::to_owned)
}

/// The machine's load over the last minute: what else it is busy with.
fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or_default().to_owned()
}
