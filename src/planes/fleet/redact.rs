//! What agents say of a job, without what its configuration holds: stream keys above all, which the last lines of a
//! program show in its output's address. Viewers read what agents say, and no configuration.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use serde_json::Value;

/// Characters of a text that may be a secret: shorter ones can be guessed, and stand everywhere.
const SHORTEST: usize = 8;
/// Texts that are looked for, for it is done under the fleet's lock: at 64 KiB of words a few milliseconds.
const MOST: usize = 1_000;
const HIDDEN: &str = "…";

/// `said`, with every longer text of the configuration hidden.
pub(super) fn without_secrets(said: &str, config: &Value) -> String {
    let mut secrets = BTreeSet::new();
    collect(config, &mut secrets);
    if secrets.len() > MOST {
        return "its words are not kept: the configuration holds too many texts to look for in them".to_owned();
    }
    let mut secrets: Vec<&str> = secrets.into_iter().collect();
    secrets.sort_by_key(|secret| Reverse(secret.len())); // a longer one may hold a shorter one
    let hide = |said: String, secret: &str| if said.contains(secret) { said.replace(secret, HIDDEN) } else { said };
    secrets.into_iter().fold(said.to_owned(), hide)
}

fn collect<'a>(value: &'a Value, secrets: &mut BTreeSet<&'a str>) {
    match value {
        Value::String(text) => {
            let parts = [Some(text.trim()), key_of(text)];
            secrets.extend(parts.into_iter().flatten().filter(|part| part.chars().count() >= SHORTEST));
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, secrets)),
        Value::Object(fields) => fields.values().for_each(|field| collect(field, secrets)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// What stands last in an address, behind its host, as stream keys do: programs also name it alone.
fn key_of(text: &str) -> Option<&str> {
    let (_, place) = text.trim().split_once("://")?;
    let (_, path) = place.split_once(['/', '?'])?;
    path.trim_end_matches('/').rsplit('/').next()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn no_stream_key_is_left_in_what_an_agent_says() {
        let config = json!({ "streamUrl": "rtmp://live.example/app/abcd-efgh-ijkl", "preset": "fast",
            "more": [{ "passphrase": "correct horse" }, 12345678] });
        for (said, kept) in [
            ("rtmp://live.example/app/abcd-efgh-ijkl: Broken pipe", "…: Broken pipe"),
            ("stream abcd-efgh-ijkl was refused, twice: abcd-efgh-ijkl", "stream … was refused, twice: …"),
            ("bad passphrase 'correct horse'", "bad passphrase '…'"),
            ("fast at 12345678", "fast at 12345678"),
            ("no route to live.example", "no route to live.example"),
        ] {
            assert_eq!(without_secrets(said, &config), kept);
        }
        assert_eq!(without_secrets("anything", &Value::Null), "anything");
    }

    #[test]
    fn what_cannot_be_looked_through_is_not_kept() {
        let config: Vec<String> = (0..=MOST).map(|number| format!("a-long-text-{number}")).collect();
        assert!(!without_secrets("a-long-text-7", &json!(config)).contains("text-7"));
    }
}
