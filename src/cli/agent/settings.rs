//! What an agent is told at its start: flags over the environment over a file.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use secrecy::SecretString;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::template::Template;
use crate::cli::failure::{Failure, Outcome, without_secrets};
use crate::planes::fleet::protocol::MOST_SLOTS;

/// What the orchestrator takes on loopback where nobody has set a token.
const DEVELOPMENT_TOKEN: &str = "dev-shared-token";

/// The flags.
#[derive(Debug, Args)]
pub(in crate::cli) struct Flags {
    /// The orchestrator, e.g. ws://127.0.0.1:8000/agent or wss://stream.example.com/agent.
    #[arg(long, env = "SHOWRUNNER_AGENT_URL", value_name = "URL", hide_env_values = true)]
    url: Option<String>,
    /// The agent's token; better in the environment or the file, where `ps` does not show it.
    #[arg(long, env = "AGENT_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// The agent's own id, the same after each start; default: this machine's name.
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    /// Its name for people; default: its id.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// How many jobs it runs at once; default: 1.
    #[arg(long, value_name = "N")]
    slots: Option<u16>,
    /// The largest picture that it can handle, e.g. 1080p.
    #[arg(long, value_name = "RESOLUTION")]
    max_resolution: Option<String>,
    /// Something else that jobs may ask for, e.g. gpu=true; may be repeated.
    #[arg(long = "capability", value_name = "NAME=VALUE", value_parser = capability)]
    capabilities: Vec<(String, Value)>,
    /// The command of a job. {name} is filled from the job's config, {jobId} and {agentId} by the agent.
    #[arg(long, value_name = "TEMPLATE")]
    command: Option<String>,
    /// Told to end, it lets jobs finish for so long before it stops them, e.g. 10m; default: it stops them at once.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    drain: Option<Duration>,
    /// A YAML file with the same keys; flags and environment win.
    #[arg(long, value_name = "PATH")]
    file: Option<PathBuf>,
}

/// The file's keys.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct File {
    url: Option<String>,
    token: Option<SecretString>,
    id: Option<String>,
    name: Option<String>,
    slots: Option<u16>,
    max_resolution: Option<String>,
    capabilities: Map<String, Value>,
    command: Option<Command>,
    drain: Option<String>,
}

/// A line that is cut by quotes, or the arguments one by one.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Command {
    Line(String),
    Arguments(Vec<String>),
}

/// What the agent goes by.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) url: String,
    pub(super) token: SecretString,
    pub(super) id: String,
    pub(super) name: String,
    pub(super) slots: u16,
    /// `slots`, `maxResolution` and the others, as they are told.
    pub(super) capabilities: Map<String, Value>,
    pub(super) template: Template,
    pub(super) drain: Duration,
}

impl Flags {
    pub(super) fn settle(self) -> Outcome<Settings> {
        let file = self.file.as_deref().map(read).transpose()?.unwrap_or_default();
        let url = self.url.or(file.url).ok_or_else(|| {
            Failure::usage("no orchestrator is named: pass --url ws://HOST:PORT/agent, or set url in the file")
        })?;
        let command = self.command.map(Command::Line).or(file.command).ok_or_else(|| {
            Failure::usage(
                "no command is given: pass e.g. --command 'ffmpeg -i {streamUrl} -c copy /srv/{jobId}.mkv', \
                 or set command in the file",
            )
        })?;
        let template = match command {
            Command::Line(line) => Template::from_line(&line),
            Command::Arguments(words) => Template::from_arguments(words),
        };
        let template = template.map_err(|misfit| Failure::usage(format!("the command is refused: {misfit}")))?;
        let drain = match (self.drain, file.drain) {
            (Some(drain), _) => drain,
            (None, Some(text)) => humantime::parse_duration(&text)
                .map_err(|cause| Failure::usage(format!("drain: {cause}; write e.g. 10m")))?,
            (None, None) => Duration::ZERO,
        };
        let id = match self.id.or(file.id) {
            Some(id) => id,
            None => rustix::system::uname().nodename().to_string_lossy().into_owned(),
        };
        if id.trim().is_empty() {
            return Err(Failure::usage("the agent's id is empty: pass --id"));
        }
        let slots = self.slots.or(file.slots).unwrap_or(1);
        if !(1..=MOST_SLOTS).contains(&i64::from(slots)) {
            return Err(Failure::usage(format!("an agent has 1 to {MOST_SLOTS} slots, not {slots}: pass --slots")));
        }
        let mut capabilities = file.capabilities;
        capabilities.extend(self.capabilities);
        if let Some(resolution) = self.max_resolution.or(file.max_resolution) {
            capabilities.insert("maxResolution".to_owned(), resolution.into());
        }
        capabilities.insert("slots".to_owned(), slots.into());
        Ok(Settings {
            url: address(&url)?,
            token: self.token.map(Into::into).or(file.token).unwrap_or_else(|| DEVELOPMENT_TOKEN.into()),
            name: self.name.or(file.name).unwrap_or_else(|| id.clone()),
            id,
            slots,
            capabilities,
            template,
            drain,
        })
    }
}

fn read(path: &Path) -> Outcome<File> {
    let refused = |cause: String| Failure::usage(format!("{} is refused: {cause}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|cause| refused(cause.to_string()))?;
    // Without the lines that the parser would show: one of them may hold the token.
    let options = serde_saphyr::options! { with_snippet: false };
    serde_saphyr::from_str_with_options(&text, options).map_err(|cause| refused(cause.to_string()))
}

/// `gpu=true`: what reads as JSON is taken as such, anything else as text.
fn capability(text: &str) -> Result<(String, Value), String> {
    let (name, value) = text.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or("write NAME=VALUE")?;
    Ok((name.to_owned(), serde_json::from_str(value).unwrap_or_else(|_| value.into())))
}

/// The WebSocket's address: `http` and `https` are taken too, and without a path it is `/agent`.
fn address(text: &str) -> Outcome<String> {
    let refused =
        |why: &str| Failure::usage(format!("`{}` is no address of an orchestrator: {why}", without_secrets(text)));
    let mut url = reqwest::Url::parse(text).map_err(|cause| refused(&cause.to_string()))?;
    let scheme = match url.scheme() {
        "ws" | "http" => "ws",
        "wss" | "https" => "wss",
        _ => return Err(refused("it begins with ws:// or wss://")),
    };
    if scheme == "ws" && !is_near(&url) {
        eprintln!("showrunner: the token goes over the network unencrypted; use wss:// beyond networks that you trust");
    }
    // The two pairs are exchangeable for this parser only through the text.
    let rest = url.as_str().split_once("://").map(|(_, rest)| rest.to_owned()).unwrap_or_default();
    url = reqwest::Url::parse(&format!("{scheme}://{rest}")).map_err(|cause| refused(&cause.to_string()))?;
    if url.path() == "/" {
        url.set_path("/agent");
    }
    Ok(url.into())
}

fn is_near(url: &reqwest::Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::json;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        flags: Flags,
    }

    fn settle(arguments: &[&str]) -> Result<Settings, String> {
        let line = Line::try_parse_from(["agent"].iter().chain(arguments)).map_err(|error| error.to_string())?;
        line.flags.settle().map_err(|failure| format!("{failure:?}"))
    }

    #[test]
    fn flags_lie_over_the_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("agent.yaml");
        let text = "url: http://127.0.0.1:8000\ntoken: secret\nid: studio-1\nslots: 3\nmax_resolution: 720p\n\
                    capabilities:\n  gpu: true\ncommand: [ffmpeg, -i, '{streamUrl}', out file.mkv]\ndrain: 10m\n";
        std::fs::write(&path, text).expect("a file");
        let file = path.to_str().expect("text");
        let settings = settle(&["--file", file, "--slots", "2", "--capability", "zone=eu"]).expect("settings");
        let shown = (settings.url.as_str(), settings.id.as_str(), settings.name.as_str(), settings.drain.as_secs());
        assert_eq!(shown, ("ws://127.0.0.1:8000/agent", "studio-1", "studio-1", 600));
        let wanted = json!({ "slots": 2, "maxResolution": "720p", "gpu": true, "zone": "eu" });
        assert_eq!(Value::Object(settings.capabilities), wanted);
        assert!(!format!("{:?}", settings.token).contains("secret"));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let (url, command) = (["--url", "ws://127.0.0.1:1"], ["--command", "ffmpeg"]);
        let with = |more: &[&'static str]| [&url[..], &command[..], more].concat();
        for (arguments, words) in [
            (command.to_vec(), "no orchestrator is named"),
            (url.to_vec(), "no command is given"),
            (with(&["--slots", "0"]), "1 to 1000 slots, not 0"),
            (with(&["--slots", "1001"]), "1 to 1000 slots, not 1001"),
            (with(&["--capability", "gpu"]), "NAME=VALUE"),
            (with(&["--id", " "]), "id is empty"),
            (with(&["--file", "/nowhere/agent.yaml"]), "is refused"),
            (vec!["--url", "ftp://a", "--command", "ffmpeg"], "begins with ws://"),
            (vec!["--url", "ws://127.0.0.1:1", "--command", "{x}"], "may not come from a job"),
        ] {
            let said = settle(&arguments).expect_err("refused");
            assert!(said.contains(words), "{arguments:?} said: {said}");
        }
    }
}
