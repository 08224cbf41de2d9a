//! The last lines that a program wrote: what is told when it fails.

use std::collections::VecDeque;

/// Enough to see what a program died of.
const LINES: usize = 20;
/// What is kept of one line; ffmpeg's own are far shorter.
const LINE_BYTES: usize = 500;

/// Cuts bytes into lines, at `\n` and at the `\r` by which programs overwrite their status. Bounded: what a line has
/// beyond its bound is dropped.
#[derive(Debug, Default)]
pub(super) struct Lines {
    open: Vec<u8>,
}

impl Lines {
    /// Takes what was read; gives the lines that it ended, without empty ones.
    pub(super) fn take(&mut self, bytes: &[u8], mut line: impl FnMut(String)) {
        for byte in bytes {
            match byte {
                b'\n' | b'\r' => self.end(&mut line),
                0 => {} // the orchestrator refuses what holds a NUL, and nobody would learn of the end
                _ if self.open.len() < LINE_BYTES => self.open.push(*byte),
                _ => {}
            }
        }
    }

    /// Ends what was left open.
    pub(super) fn end(&mut self, mut line: impl FnMut(String)) {
        if !self.open.is_empty() {
            line(String::from_utf8_lossy(&self.open).trim_end().to_owned());
            self.open.clear();
        }
    }
}

/// The last lines, oldest first.
#[derive(Debug, Default)]
pub(super) struct Tail {
    lines: VecDeque<String>,
}

impl Tail {
    pub(super) fn push(&mut self, line: String) {
        if self.lines.len() == LINES {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }

    pub(super) fn text(&self) -> String {
        self.lines.iter().map(String::as_str).collect::<Vec<_>>().join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(pieces: &[&[u8]]) -> Vec<String> {
        let (mut lines, mut found) = (Lines::default(), Vec::new());
        for piece in pieces {
            lines.take(piece, |line| found.push(line));
        }
        lines.end(|line| found.push(line));
        found
    }

    #[test]
    fn lines_end_at_either_mark_wherever_the_bytes_are_cut() {
        assert_eq!(cut(&[b"one\ntw", b"o\r", b"\n\rthree\xff"]), ["one", "two", "three\u{fffd}"]);
    }

    #[test]
    fn a_nul_is_left_out() {
        assert_eq!(cut(&[b"\0\n", b"o\0n", b"e\0\0"]), ["one"]);
    }

    #[test]
    fn neither_a_long_line_nor_many_lines_grow_without_bound() {
        let long = cut(&[&[b'x'; 100_000]]);
        assert_eq!(long[0].len(), LINE_BYTES);
        let mut tail = Tail::default();
        (0..1_000).for_each(|n| tail.push(n.to_string()));
        assert_eq!(tail.text().lines().count(), LINES);
        assert!(tail.text().ends_with("998\n999"));
    }
}
