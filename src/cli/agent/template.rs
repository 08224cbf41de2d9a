//! The command of a job: a template whose `{name}` are filled from the job's config.
//!
//! There is no shell: the template is cut into arguments once, and a value only ever becomes part of one argument.

use std::fmt::Write;

use serde_json::{Map, Value};

/// A value may be so long; the longest URL that players and platforms take is far below.
const VALUE_BYTES: usize = 8 * 1024;

/// A command whose arguments may hold placeholders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Template {
    arguments: Vec<Vec<Piece>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Value { name: String, default: Option<String> },
}

/// Why a text is no template, or a config does not fit one. Said in a sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Misfit(String);

impl Template {
    /// Cuts a line into arguments by the quoting rules of a POSIX shell; nothing is expanded.
    pub(super) fn from_line(line: &str) -> Result<Self, Misfit> {
        let words = shlex::split(line).ok_or_else(|| Misfit("a quote in the command is not closed".to_owned()))?;
        Self::from_arguments(words)
    }

    /// Takes arguments that are cut already.
    pub(super) fn from_arguments(words: Vec<String>) -> Result<Self, Misfit> {
        let arguments: Vec<_> = words.iter().map(|word| pieces(word)).collect::<Result<_, _>>()?;
        match arguments.first().map(Vec::as_slice) {
            Some([Piece::Text(program)]) if !program.is_empty() => Ok(Self { arguments }),
            Some([.., Piece::Value { .. }] | [Piece::Value { .. }, ..]) => {
                Err(Misfit("the program itself may not come from a job: begin the command with its name".to_owned()))
            }
            _ => Err(Misfit("the command is empty: name a program, such as ffmpeg".to_owned())),
        }
    }

    /// The program that is run.
    pub(super) fn program(&self) -> &str {
        match self.arguments[0].as_slice() {
            [Piece::Text(program)] => program,
            _ => unreachable!("checked when it was made"),
        }
    }

    /// The arguments for one job. `given` are the values that the agent itself brings, such as `jobId`; they win over
    /// the config's.
    pub(super) fn fill(&self, config: &Value, given: &Map<String, Value>) -> Result<Vec<String>, Misfit> {
        self.arguments.iter().map(|pieces| filled(pieces, config, given)).collect()
    }
}

fn pieces(word: &str) -> Result<Vec<Piece>, Misfit> {
    let mut pieces = Vec::new();
    let mut text = String::new();
    let mut rest = word;
    while let Some(at) = rest.find(['{', '}']) {
        text.push_str(&rest[..at]);
        let brace = &rest[at..at + 1];
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix(brace) {
            text.push_str(brace); // doubled: the character itself
            rest = after;
            continue;
        }
        let closed = rest.split_once('}').filter(|_| brace == "{");
        let Some((inside, after)) = closed else {
            return Err(Misfit(format!("`{word}`: a single {brace}; write {brace}{brace} for the character itself")));
        };
        let (name, default) = match inside.split_once('=') {
            Some((name, default)) => (name, Some(default.to_owned())),
            None => (inside, None),
        };
        let is_name =
            |part: &str| !part.is_empty() && part.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '-');
        if !name.split('.').all(is_name) {
            return Err(Misfit(format!(
                "`{word}`: `{{{inside}}}` is no placeholder; write {{name}}, {{name.of.a.field}} or {{name=default}}"
            )));
        }
        if !text.is_empty() {
            pieces.push(Piece::Text(std::mem::take(&mut text)));
        }
        pieces.push(Piece::Value { name: name.to_owned(), default });
        rest = after;
    }
    text.push_str(rest);
    if !text.is_empty() || pieces.is_empty() {
        pieces.push(Piece::Text(text));
    }
    Ok(pieces)
}

fn filled(pieces: &[Piece], config: &Value, given: &Map<String, Value>) -> Result<String, Misfit> {
    let mut argument = String::new();
    for piece in pieces {
        match piece {
            Piece::Text(text) => argument.push_str(text),
            Piece::Value { name, default } => {
                let found = given.get(name).or_else(|| lookup(config, name)).filter(|value| !value.is_null());
                let begins = argument.is_empty();
                match (found, default) {
                    (Some(value), _) => take(&mut argument, name, value)?,
                    (None, Some(default)) => argument.push_str(default),
                    (None, None) => {
                        return Err(Misfit(format!(
                            "the job's config has no `{name}`, which this agent's command needs"
                        )));
                    }
                }
                // Whoever writes a job chooses values, never options.
                if begins && found.is_some() && argument.starts_with('-') {
                    return Err(Misfit(format!(
                        "`{name}` may not begin with `-`: the program would take it for an option"
                    )));
                }
            }
        }
    }
    Ok(argument)
}

fn lookup<'a>(config: &'a Value, name: &str) -> Option<&'a Value> {
    name.split('.').try_fold(config, |value, part| value.get(part))
}

fn take(argument: &mut String, name: &str, value: &Value) -> Result<(), Misfit> {
    match value {
        Value::String(text) if text.len() > VALUE_BYTES => {
            return Err(Misfit(format!("`{name}` is longer than {VALUE_BYTES} bytes")));
        }
        Value::String(text) if text.chars().any(char::is_control) => {
            return Err(Misfit(format!("`{name}` holds control characters")));
        }
        Value::String(text) => argument.push_str(text),
        Value::Number(_) | Value::Bool(_) => write!(argument, "{value}").expect("a String takes all"),
        _ => return Err(Misfit(format!("`{name}` is no text, number or truth value"))),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn fill(line: &str, config: Value) -> Result<Vec<String>, String> {
        let given = json!({ "jobId": "job-1" }).as_object().cloned().expect("an object");
        let template = Template::from_line(line).map_err(|misfit| misfit.to_string())?;
        template.fill(&config, &given).map_err(|misfit| misfit.to_string())
    }

    #[test]
    fn a_command_is_filled_from_the_config() {
        let line =
            r#"ffmpeg -i {streamUrl} -metadata title="{title=no name}" -b:v {video.rate}k '/srv/{jobId}.mkv' {{x}}"#;
        let config = json!({ "streamUrl": "rtmp://a/b c", "video": { "rate": 800 }, "jobId": "../../etc/passwd" });
        let wanted =
            ["ffmpeg", "-i", "rtmp://a/b c", "-metadata", "title=no name", "-b:v", "800k", "/srv/job-1.mkv", "{x}"];
        assert_eq!(fill(line, config).expect("it fits"), wanted);
    }

    #[test]
    fn what_does_not_fit_is_said() {
        for (line, config, words) in [
            ("ffmpeg -i {streamUrl}", json!({}), "has no `streamUrl`"),
            ("ffmpeg -i {streamUrl}", json!(null), "has no `streamUrl`"),
            ("ffmpeg -i {streamUrl}", json!({ "streamUrl": null }), "has no `streamUrl`"),
            ("ffmpeg -i {streamUrl}", json!({ "streamUrl": ["a"] }), "is no text"),
            ("ffmpeg -i {streamUrl}", json!({ "streamUrl": "a\nb" }), "control characters"),
            ("ffmpeg {streamUrl}", json!({ "streamUrl": "-y" }), "may not begin with `-`"),
            ("ffmpeg {n}", json!({ "n": -1 }), "may not begin with `-`"),
            ("ffmpeg {a=}{b}", json!({ "a": "", "b": "-y" }), "may not begin with `-`"),
            ("ffmpeg {a}", json!({ "a": "x".repeat(9_000) }), "longer than"),
            ("{program} -i x", json!({ "program": "rm" }), "may not come from a job"),
            ("/opt/{program}", json!({ "program": "rm" }), "may not come from a job"),
            ("", json!({}), "is empty"),
            ("ffmpeg 'a", json!({}), "not closed"),
            ("ffmpeg {a", json!({}), "a single {"),
            ("ffmpeg a}", json!({}), "a single }"),
            ("ffmpeg '{a b}'", json!({}), "is no placeholder"),
        ] {
            let said = fill(line, config).expect_err(line);
            assert!(said.contains(words), "`{line}` said: {said}");
        }
    }

    proptest! {
        #[test]
        fn a_value_stays_inside_its_argument(value in "\\PC{1,60}") {
            let filled = fill("sh -c x={value} {value=y}z end", json!({ "value": value }));
            if let Ok(arguments) = filled {
                let mark = format!("x={value}");
                prop_assert_eq!(arguments, vec!["sh".to_owned(), "-c".to_owned(), mark, format!("{value}z"), "end".to_owned()]);
            } else {
                prop_assert!(value.starts_with('-'));
            }
        }

        #[test]
        fn no_text_makes_it_panic(line in "\\PC{0,60}") {
            let _ = Template::from_line(&line);
        }
    }
}
