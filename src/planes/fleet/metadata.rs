//! A stream's metadata: what people and agents say of it, merged key by key.

use serde_json::{Map, Value};

use crate::problem::FieldError;

/// Bytes of one stream's metadata: it goes out to every UI client with each change.
const MOST_BYTES: usize = 16 * 1024;

const TEXTS: [&str; 6] = ["title", "description", "publicUrl", "adminUrl", "streamId", "platform"];

/// Lays `changes` over `metadata`. Null takes a key away. The documented keys have their types; others, which platforms
/// may need, are kept as they are. `isMuted` is what the agent acknowledged, and is left alone here. Nothing changes
/// where anything is refused.
pub fn merge(metadata: &mut Map<String, Value>, changes: &Map<String, Value>) -> Result<(), Vec<FieldError>> {
    let mut faults = Vec::new();
    let mut refuse = |field: &str, message: &str| {
        faults.push(FieldError { field: field.to_owned(), message: message.to_owned() });
    };
    let mut merged = metadata.clone();
    for (name, value) in changes {
        match (name.as_str(), value) {
            ("isMuted", Value::Bool(_) | Value::Null) => continue,
            ("isMuted", _) => refuse(name, "takes true or false; it follows what the agent acknowledges"),
            (_, Value::Null) => _ = merged.remove(name),
            ("viewers", Value::Number(number)) if number.as_u64().is_some() => {
                merged.insert(name.clone(), value.clone());
            }
            ("viewers", _) => refuse(name, "takes a whole number, 0 or more"),
            (known, value) if TEXTS.contains(&known) && !value.is_string() => refuse(name, "takes a text"),
            _ => _ = merged.insert(name.clone(), value.clone()),
        }
    }
    if Value::Object(merged.clone()).to_string().len() > MOST_BYTES {
        refuse("body", "would make the metadata larger than 16 KiB");
    }
    if !faults.is_empty() {
        return Err(faults);
    }
    *metadata = merged;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object(value: Value) -> Map<String, Value> {
        value.as_object().cloned().unwrap_or_default()
    }

    #[test]
    fn what_is_given_is_merged_and_what_is_not_stays() {
        let mut metadata = object(json!({ "title": "a", "viewers": 3, "isMuted": true, "youtube": { "id": 1 } }));
        let changes = object(json!({ "viewers": 4, "title": null, "isMuted": false, "platform": "twitch" }));
        merge(&mut metadata, &changes).expect("taken");
        let merged = json!({ "viewers": 4, "isMuted": true, "youtube": { "id": 1 }, "platform": "twitch" });
        assert_eq!(Value::Object(metadata), merged);
    }

    #[test]
    fn what_does_not_fit_changes_nothing() {
        let mut metadata = object(json!({ "title": "a" }));
        for (changes, field) in [
            (json!({ "title": 7, "platform": "x" }), "title"),
            (json!({ "viewers": -1 }), "viewers"),
            (json!({ "viewers": 1.5 }), "viewers"),
            (json!({ "isMuted": "yes" }), "isMuted"),
            (json!({ "more": "x".repeat(20_000) }), "body"),
        ] {
            let faults = merge(&mut metadata, &object(changes)).expect_err("refused");
            assert_eq!(faults[0].field, field);
            assert_eq!(metadata.len(), 1);
        }
    }
}
