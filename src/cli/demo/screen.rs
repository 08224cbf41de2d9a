//! The demo as it is seen: a screen that is redrawn in place, or plain lines.

use std::time::Duration;

use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::symbols::Marker;
use ratatui::text::{Line, Span};
use ratatui::widgets::{
    Axis, Block, Chart, Dataset, Gauge, GraphType, LegendPosition, List, ListItem, Paragraph, Row, Table,
};
use ratatui::{DefaultTerminal, Frame};

use super::world::{Decision, Sample};
use crate::cli::failure::Outcome;
use crate::cli::output::Output;
use crate::control::snapshot::Snapshot;
use crate::db::Timestamp;
use crate::telemetry::{colour_is_wanted, visible};

/// Samples that the chart shows: a line may go on for hours.
const CHART_SAMPLES: usize = 240;
/// The table of numbers needs this much; at 80 by 24 everything is whole.
const NUMBERS_WIDTH: u16 = 41;
const NUMBERS_HEIGHT: u16 = 14;
/// Plain lines of health in a run of ordinary length.
const PLAIN_EVERY: usize = 5;

/// What there is to see.
#[derive(Default)]
pub(super) struct View {
    pub(super) url: Option<String>,
    /// With the loop, and without it.
    pub(super) samples: Vec<(Sample, Sample)>,
    /// Newest last.
    pub(super) decisions: Vec<Decision>,
    pub(super) outage: bool,
    /// 0 to 1; none when the demo has no end.
    pub(super) progress: Option<f64>,
}

/// The terminal while the demo has it. It is given back when this is dropped, and by a panic.
pub(super) struct Screen {
    terminal: DefaultTerminal,
    colours: bool,
}

impl Screen {
    pub(super) fn open() -> Outcome<Self> {
        Ok(Self { terminal: ratatui::try_init()?, colours: colour_is_wanted() })
    }

    /// Draws, and answers whether somebody wants to leave.
    pub(super) fn draw(&mut self, view: &View) -> Outcome<bool> {
        let colours = self.colours;
        self.terminal.draw(|frame| draw(frame, view, colours))?;
        while event::poll(Duration::ZERO)? {
            if let Event::Key(key) = event::read()?
                && key.kind == KeyEventKind::Press
            {
                let control_c = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
                if control_c || matches!(key.code, KeyCode::Char('q' | 'Q') | KeyCode::Esc) {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

fn draw(frame: &mut Frame<'_>, view: &View, colours: bool) {
    let paint = |colour: Color| if colours { Style::new().fg(colour) } else { Style::new() };
    let [top, middle, bottom, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Min(NUMBERS_HEIGHT),
        Constraint::Fill(1),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    let [chart, state] = Layout::horizontal([Constraint::Fill(1), Constraint::Max(NUMBERS_WIDTH)]).areas(middle);
    let Some((with_loop, without)) = view.samples.last() else { return };
    title(frame, top, view, with_loop, &paint);
    health(frame, chart, view, colours);
    numbers(frame, state, with_loop, without, &paint);
    decisions(frame, bottom, view, &paint);
    match view.progress {
        Some(progress) => {
            let gauge = Gauge::default().gauge_style(paint(Color::Blue)).ratio(progress.clamp(0.0, 1.0));
            frame.render_widget(gauge, foot);
        }
        None => frame.render_widget(Paragraph::new("q leaves"), foot),
    }
}

fn title(frame: &mut Frame<'_>, area: Rect, view: &View, with_loop: &Sample, paint: &dyn Fn(Color) -> Style) {
    let mut spans = vec![
        Span::styled("showrunner demo ", Style::new().add_modifier(Modifier::BOLD)),
        Span::raw(clock_face(&with_loop.snapshot)),
    ];
    if view.outage {
        spans.push(Span::styled("  the platforms are down", paint(Color::Red).add_modifier(Modifier::BOLD)));
    }
    if let Some(url) = &view.url {
        spans.push(Span::raw(format!("  {url}  q leaves")));
    }
    frame.render_widget(Paragraph::new(Line::from(spans)), area);
}

fn health(frame: &mut Frame<'_>, area: Rect, view: &View, colours: bool) {
    let shown = &view.samples[view.samples.len().saturating_sub(CHART_SAMPLES)..];
    let points = |pick: fn(&(Sample, Sample)) -> i64| -> Vec<(f64, f64)> {
        shown.iter().enumerate().map(|(index, pair)| (index as f64, pick(pair) as f64)).collect()
    };
    let (one, other) = (points(|pair| pair.0.health()), points(|pair| pair.1.health()));
    // Without colours the two lines differ by their marks.
    let dataset = |name, marker, colour: Color, data| {
        let style = if colours { Style::new().fg(colour) } else { Style::new() };
        Dataset::default().name(name).marker(marker).graph_type(GraphType::Line).style(style).data(data)
    };
    let (line, dots) = if colours { (Marker::Braille, Marker::Braille) } else { (Marker::Braille, Marker::Dot) };
    let datasets = vec![
        dataset("without the loop", dots, Color::Red, other.as_slice()),
        dataset("with the loop", line, Color::Green, one.as_slice()),
    ];
    let times =
        [shown.first(), shown.last()].map(|pair| pair.map_or_else(String::new, |pair| clock_face(&pair.0.snapshot)));
    let chart = Chart::new(datasets)
        .block(Block::bordered().title(" health "))
        .x_axis(Axis::default().bounds([0.0, shown.len().max(2) as f64 - 1.0]).labels(times))
        .y_axis(Axis::default().bounds([0.0, 100.0]).labels(["0", "25", "50", "75", "100"]))
        .legend_position(Some(LegendPosition::BottomRight))
        // Shown wherever it leaves two thirds of the chart free.
        .hidden_legend_constraints((Constraint::Ratio(1, 3), Constraint::Ratio(1, 3)));
    frame.render_widget(chart, area);
}

fn numbers(frame: &mut Frame<'_>, area: Rect, one: &Sample, other: &Sample, paint: &dyn Fn(Color) -> Style) {
    let mut rows = vec![Row::new(["", "with loop", "without"]).style(Style::new().add_modifier(Modifier::BOLD))];
    for (name, pick) in MEASURES {
        rows.push(Row::new([(*name).to_owned(), pick(&one.snapshot).to_string(), pick(&other.snapshot).to_string()]));
    }
    for window in one.snapshot.scheduler.iter().flat_map(|scheduler| &scheduler.windows) {
        let (mark, style, state) = if window.active {
            ("●", paint(Color::Green), format!("{} min left", window.minutes_left))
        } else {
            ("○", Style::new(), format!("at {}", window.opens_at.utc().format("%H:%M")))
        };
        rows.push(Row::new([format!("{mark} {}", window.platform), state, String::new()]).style(style));
    }
    let widths = [Constraint::Min(15), Constraint::Length(13), Constraint::Length(9)];
    frame
        .render_widget(Table::new(rows, widths).block(Block::bordered().title(" queue, publications, windows ")), area);
}

/// A measure's name and how it is read.
type Measure = (&'static str, fn(&Snapshot) -> i64);

/// What stands side by side.
const MEASURES: &[Measure] = &[
    ("health", |snapshot| snapshot.system.health_score),
    ("jobs pending", |snapshot| snapshot.jobs.as_ref().map_or(0, |jobs| jobs.pending)),
    ("jobs put off", |snapshot| snapshot.jobs.as_ref().map_or(0, |jobs| jobs.waiting + jobs.retry)),
    ("oldest, minutes", |snapshot| snapshot.jobs.as_ref().map_or(0, |jobs| jobs.oldest_pending_minutes)),
    ("published", |snapshot| snapshot.publish_logs.as_ref().map_or(0, |logs| logs.published)),
    ("scheduled", |snapshot| snapshot.publish_logs.as_ref().map_or(0, |logs| logs.scheduled + logs.pending)),
    ("failed", |snapshot| snapshot.publish_logs.as_ref().map_or(0, |logs| logs.failed)),
    ("unknown", |snapshot| snapshot.publish_logs.as_ref().map_or(0, |logs| logs.unknown)),
];

fn decisions(frame: &mut Frame<'_>, area: Rect, view: &View, paint: &dyn Fn(Color) -> Style) {
    let room = usize::from(area.height.saturating_sub(2));
    let items = view.decisions.iter().rev().take(room).map(|decision| {
        let colour = if decision.executed { Color::Green } else { Color::Yellow };
        let mark = if decision.executed { "✓" } else { "–" };
        ListItem::new(Line::from(vec![
            Span::styled(format!("{mark} "), paint(colour)),
            Span::raw(format!("{} ", decision.at.utc().format("%H:%M:%S"))),
            Span::styled(
                format!("{} {} ", visible(&decision.action), visible(&decision.target)),
                Style::new().add_modifier(Modifier::BOLD),
            ),
            Span::raw(visible(&decision.reason)),
        ]))
    });
    let list = List::new(items).block(Block::bordered().title(" what the loop did, and why "));
    frame.render_widget(list, area);
}

fn clock_face(snapshot: &Snapshot) -> String {
    snapshot.at.utc().format("%H:%M").to_string()
}

/// The demo in lines, for logs and pipes.
pub(super) struct Plain<'a> {
    out: &'a mut Output,
    steps: usize,
    told: Option<Timestamp>,
}

impl<'a> Plain<'a> {
    pub(super) fn new(out: &'a mut Output) -> Self {
        Self { out, steps: 0, told: None }
    }

    pub(super) fn stepped(&mut self, view: &View) -> Outcome {
        if self.out.wants_json() {
            return Ok(());
        }
        self.steps += 1;
        if self.steps == 1
            && let Some(url) = &view.url
        {
            self.out.line(&format!("A simulated platform on a fast clock. Its status page: {url}"))?;
        }
        if !(self.steps - 1).is_multiple_of(PLAIN_EVERY) {
            return Ok(());
        }
        let Some((one, other)) = view.samples.last() else { return Ok(()) };
        let down = if view.outage { "; the platforms are down" } else { "" };
        self.out.line(&format!(
            "{} health {} with the loop, {} without; published {} / {}; jobs pending {} / {}{down}",
            clock_face(&one.snapshot),
            one.health(),
            other.health(),
            one.published(),
            other.published(),
            one.backlog(),
            other.backlog(),
        ))?;
        // The newest since the last line; more would drown the rest.
        let since = self.told;
        let new: Vec<&Decision> =
            view.decisions.iter().filter(|decision| since.is_none_or(|since| decision.at > since)).collect();
        for decision in new.iter().rev().take(3).rev() {
            let verb = if decision.executed { "" } else { "held: " };
            self.out.line(&format!("      {verb}{} {}: {}", decision.action, decision.target, decision.reason))?;
        }
        if let Some(last) = new.last() {
            self.told = Some(last.at);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use serde_json::json;

    use super::*;

    fn snapshot(health: i64, pending: i64) -> Snapshot {
        let windows = ["instagram", "tiktok", "youtube"].map(|platform| {
            json!({
                "platform": platform, "time_zone": "UTC", "opens_at": "2026-11-20T16:00:00.000Z",
                "closes_at": "2026-11-20T23:00:00.000Z", "active": platform == "tiktok", "minutes_left": 1439,
            })
        });
        serde_json::from_value(json!({
            "at": "2026-11-20T21:34:56.000Z",
            "jobs": {
                "pending": pending, "processing": 1, "retry": 1, "failed": 2, "completed": 999_999, "waiting": 30,
                "oldest_pending_minutes": 10_000, "queue_saturated": true,
            },
            "scheduler": { "windows": windows, "active": ["tiktok"], "closing_soon": [], "any_active": true },
            "system": { "health_score": health, "status": "healthy", "deductions": [], "unobserved": [] },
        }))
        .expect("a snapshot")
    }

    fn drawn(width: u16, height: u16, view: &View) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
        terminal.draw(|frame| draw(frame, view, true)).expect("drawn");
        let buffer = terminal.backend().buffer();
        (0..height).map(|y| (0..width).map(|x| buffer[(x, y)].symbol()).collect()).collect()
    }

    #[test]
    fn a_terminal_of_80_by_24_shows_everything_whole_and_nothing_hostile() {
        let sample = |health, pending| Sample { snapshot: snapshot(health, pending) };
        let decision = |second: i64| Decision {
            at: Timestamp::new(chrono::DateTime::from_timestamp(1_800_000_000 + second, 0).expect("a time")),
            action: "force_publish".to_owned(),
            target: format!("publish_log:{second}"),
            reason: "stuck\u{1b}[2J\nforged".to_owned(),
            executed: second % 2 == 0,
        };
        let view = View {
            url: Some("http://127.0.0.1:65535".to_owned()),
            samples: (0..500).map(|n| (sample(100, 3), sample(100 - n / 5, 123_456))).collect(),
            decisions: (0..50).map(decision).collect(),
            outage: true,
            progress: None,
        };
        let lines = drawn(80, 24, &view);
        let screen = lines.join("\n");
        for words in [
            "showrunner demo 21:34",
            "the platforms are down",
            "http://127.0.0.1:65535",
            "q leaves",
            " health ",
            "queue, publications, windows",
            "with loop",
            "without",
            "what the loop did, and why",
        ] {
            assert!(screen.contains(words), "{words} in\n{screen}");
        }
        let row =
            |name: &str| lines.iter().find(|line| line.contains(name)).unwrap_or_else(|| panic!("{name} in\n{screen}"));
        for (name, _) in MEASURES.iter().filter(|(name, _)| *name != "health") {
            row(name);
        }
        assert!(row("jobs pending").contains(" 3 ") && row("jobs pending").contains("123456"), "{screen}");
        assert!(row("oldest, minutes").matches("10000").count() == 2, "{screen}");
        assert!(row("● tiktok").contains("1439 min left") && row("○ youtube").contains("at 16:00"), "{screen}");
        assert!(row("publish_log:49").contains(r"stuck\u{1b}[2J\nforged"), "the newest, and visibly:\n{screen}");
        assert!(lines[0].trim_end().ends_with("q leaves") && lines[23].trim_end() == "q leaves", "{screen}");
    }

    #[test]
    fn a_terminal_of_any_size_is_drawn_on() {
        let sample = || Sample { snapshot: snapshot(1, 2) };
        let view = View { samples: vec![(sample(), sample())], progress: Some(7.0), ..View::default() };
        for (width, height) in [(1, 1), (2, 40), (10, 3), (80, 5), (300, 100)] {
            drawn(width, height, &view);
            drawn(width, height, &View::default());
        }
    }
}
