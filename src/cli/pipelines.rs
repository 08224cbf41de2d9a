//! `pipelines`: running a definition here, checking it, drawing it, and taking one over from a real workflow.

use std::collections::{HashMap, HashSet};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::{Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::Common;
use super::failure::{Failure, Outcome};
use super::output::Output;
use super::way_in::connect_or_make;
use crate::clock::SystemClock;
use crate::events;
use crate::planes::pipelines::{Definition, Fault, Origin, Pipeline, Pipelines, RunStatus, StartError, StepRow};
use crate::random::Random;
use crate::storage::Stores;
use crate::telemetry::visible;

/// Between looks at a run's steps.
const LOOK: Duration = Duration::from_millis(200);

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run a definition with engines of this process, and show how its steps end. Exit code 1 if the run fails.
    #[command(
        after_help = "Examples:\n  showrunner pipelines run flow.yaml --input '{\"n\": 3}'\n  showrunner pipelines run flow.yaml --json | jq .output"
    )]
    Run {
        /// The definition, YAML or JSON.
        file: PathBuf,
        /// The run's input as JSON.
        #[arg(long, default_value = "{}", value_name = "JSON")]
        input: String,
        /// The pipeline's id; default: the file's name.
        #[arg(long)]
        id: Option<String>,
    },
    /// Check a definition and show its plan; nothing runs. Exit code 3 and every fault if it is not good.
    #[command(after_help = "Example:\n  showrunner pipelines dry-run flow.yaml --input '{\"n\": 3}'")]
    DryRun {
        /// The definition, YAML or JSON.
        file: PathBuf,
        /// An input to check, as JSON.
        #[arg(long, value_name = "JSON")]
        input: Option<String>,
    },
    /// Draw a definition.
    #[command(after_help = "Example:\n  showrunner pipelines graph flow.yaml --format svg > flow.svg")]
    Graph {
        /// The definition, YAML or JSON.
        file: PathBuf,
        /// What to draw.
        #[arg(long, value_enum, default_value_t = Format::Mermaid)]
        format: Format,
    },
    /// Turn an execution in WfFormat 1.5 (WfCommons) into a definition: every task sleeps as long as it ran, scaled.
    #[command(after_help = "Example:\n  showrunner pipelines import montage.json --scale 0.01 > montage.pipeline.json")]
    Import {
        /// The document, JSON.
        file: PathBuf,
        /// What run times are multiplied by.
        #[arg(long, default_value_t = 1.0)]
        scale: f64,
    },
}

/// What to draw.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Format {
    Mermaid,
    Svg,
}

impl Command {
    pub(super) async fn run(self, common: &Common, out: &mut Output) -> Outcome {
        match self {
            Self::Run { file, input, id } => run(common, &file, &input, id, out).await,
            Self::DryRun { file, input } => dry_run(&file, input.as_deref(), out),
            Self::Graph { file, format } => {
                let pipeline = compiled(&file)?;
                let drawn = match format {
                    Format::Mermaid => pipeline.mermaid(&HashMap::new()),
                    Format::Svg => pipeline.svg(&HashMap::new()),
                };
                out.bytes(drawn.as_bytes())
            }
            Self::Import { file, scale } => {
                let document = json_of(&read(&file)?, "the document")?;
                let definition = Definition::from_wfformat(document, scale).map_err(|faults| refused(&faults))?;
                out.json(&definition)
            }
        }
    }
}

fn read(file: &Path) -> Outcome<String> {
    let cause = |cause| Failure::usage(format!("{} cannot be read: {cause}", file.display()));
    std::fs::read_to_string(file).map_err(cause)
}

fn json_of(text: &str, what: &str) -> Outcome<Value> {
    serde_json::from_str(text).map_err(|cause| Failure::usage(format!("{what} is not JSON: {cause}")))
}

fn refused(faults: &[Fault]) -> Failure {
    let lines: Vec<String> = faults.iter().map(ToString::to_string).collect();
    Failure::rejected(format!("the definition is refused:\n{}", lines.join("\n")))
}

fn name_of(file: &Path) -> String {
    let stem = file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let id: String =
        stem.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' || c == '-' { c } else { '_' }).collect();
    if id.starts_with(|letter: char| letter.is_ascii_alphabetic()) { id } else { format!("p_{id}") }
}

fn compiled(file: &Path) -> Outcome<Arc<Pipeline>> {
    let definition = Definition::parse(&read(file)?).map_err(|fault| refused(&[fault]))?;
    Pipeline::compile(&name_of(file), 0, definition).map_err(|faults| refused(&faults))
}

fn dry_run(file: &Path, input: Option<&str>, out: &mut Output) -> Outcome {
    let pipeline = compiled(file)?;
    if let Some(input) = input {
        let given = json_of(input, "the input")?;
        pipeline.take_input(given).map_err(|faults| refused(&faults))?;
    }
    let plan = pipeline.plan(&HashMap::new());
    if out.wants_json() {
        return out.json(&plan);
    }
    let rows = plan.steps.iter().map(|step| {
        let expected =
            if step.expected_from == "unknown" { "–".to_owned() } else { format!("{} ms", step.expected_ms) };
        let kind = format!("{}{}", step.kind, if step.fans_out { " ×" } else { "" });
        vec![step.level.to_string(), step.id.clone(), kind, step.runs_on.clone(), step.needs.join(", "), expected]
    });
    out.table(&["level", "step", "kind", "runs on", "needs", "expected"], rows)?;
    out.line(&format!("Critical path: {} ({} ms).", plan.critical_path.join(" → "), plan.critical_path_ms))
}

async fn run(common: &Common, file: &Path, input: &str, id: Option<String>, out: &mut Output) -> Outcome {
    let definition = Definition::parse(&read(file)?).map_err(|fault| refused(&[fault]))?;
    let input = json_of(input, "the input")?;
    let config = common.load()?;
    let stores = Stores::open(&config.storage).map_err(Failure::usage)?;
    let db = connect_or_make(&config).await?;
    db.migrate().await?;
    let (clock, random) = (SystemClock::shared(), Random::from_machine());
    let instance = format!("command-{}-{}", std::process::id(), &random.token()[..8]);
    let monitor = events::Monitor::new(db.clone(), clock.clone());
    let plane = Pipelines::new(config.pipelines, db.clone(), monitor, clock.clone(), random, &instance).await?;
    plane.use_stores(stores);
    plane.start();
    let id = id.unwrap_or_else(|| name_of(file));
    let ended = async {
        plane.register_workflow(&id, definition).await?;
        let begun = plane.trigger(&id, input, Origin::MANUAL).await?;
        let number = begun.run;
        let mut progress = Progress::new();
        let waiting = plane.wait(begun);
        tokio::pin!(waiting);
        let end = loop {
            tokio::select! {
                end = &mut waiting => break end?,
                () = clock.sleep(LOOK) => progress.show(&plane.steps(number).await?),
            }
        };
        progress.show(&plane.steps(number).await?);
        Ok::<_, StartError>((number, end))
    };
    let ended = ended.await;
    plane.stop().await;
    db.close().await;
    let (number, end) = ended.map_err(|error| match error {
        StartError::Input(faults) | StartError::Definition(faults) => refused(&faults),
        StartError::NoSuchPipeline(_) => Failure::failed(error.to_string()),
        StartError::Store(error) => error.into(),
    })?;
    if out.wants_json() {
        out.json(&json!({ "run": number, "status": end.status, "output": end.output, "error": end.error }))?;
    } else {
        out.line(&format!("Run {number} is {}.", end.status))?;
        if end.status == RunStatus::Completed {
            out.line(&end.output.to_string())?;
        }
    }
    match end.status {
        RunStatus::Completed => Ok(()),
        status => Err(Failure::failed(format!("run {number} is {status}: {}", end.error.unwrap_or_default()))),
    }
}

/// Says on standard error how steps end: with colours on a terminal, unless `NO_COLOR` is set.
struct Progress {
    shown: HashSet<(String, i64)>,
    colours: bool,
}

impl Progress {
    fn new() -> Self {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { shown: HashSet::new(), colours: std::io::stderr().is_terminal() && !plain }
    }

    fn show(&mut self, rows: &[StepRow]) {
        for row in rows {
            let Some(finished_at) = row.finished_at else { continue };
            if !self.shown.insert((row.step.clone(), row.item)) {
                continue;
            }
            let (mark, colour) = match row.status.as_str() {
                "completed" => ("✓", "32"),
                "skipped" => ("–", "90"),
                "cancelled" => ("×", "33"),
                _ => ("✗", "31"),
            };
            let item = if row.item >= 0 { format!("[{}]", row.item) } else { String::new() };
            let took = finished_at.since(row.started_at).as_millis();
            let error = row.error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
            let text = visible(&format!("{}{item} {} after {took} ms{error}", row.step, row.status));
            let line =
                if self.colours { format!("\u{1b}[{colour}m{mark}\u{1b}[0m {text}") } else { format!("{mark} {text}") };
            // Whoever reads progress may have gone; the run goes on.
            let _ = writeln!(std::io::stderr(), "{line}");
        }
    }
}
