//! serde's refusals in words that a client can act on.

use crate::problem::FieldError;

/// Characters of a client's own words that an answer repeats. It also bounds the search for the name that was meant,
/// whose cost grows with the length.
const REPEATED: usize = 200;

/// The refusal of one field: `path` is where serde stood, `message` what it said.
pub(super) fn explain(path: &str, message: &str) -> FieldError {
    let FieldError { field, message } = explained(path, message);
    FieldError { field: shortened(&field), message: shortened(&message) }
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(REPEATED) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

fn explained(path: &str, message: &str) -> FieldError {
    let path = if path == "." { "" } else { path };
    if let Some(name) = named(message, "missing field ") {
        return FieldError { field: join(path, name), message: "is required".to_owned() };
    }
    if let Some(name) = named(message, "unknown field ") {
        let known = message.split_once(", expected ").map(|(_, known)| backticked(known)).unwrap_or_default();
        let field = if path.rsplit(['.', ']']).next() == Some(name) { path.to_owned() } else { join(path, name) };
        return FieldError { field, message: unknown(name, &known) };
    }
    if let Some(name) = named(message, "duplicate field ") {
        let field = if path.rsplit('.').next() == Some(name) { path.to_owned() } else { join(path, name) };
        return FieldError { field, message: "is given more than once".to_owned() };
    }
    let message = message.split(" at line ").next().unwrap_or(message).to_owned();
    FieldError { field: if path.is_empty() { "body".to_owned() } else { path.to_owned() }, message }
}

/// The text between the backticks that follow `intro`.
fn named<'m>(message: &'m str, intro: &str) -> Option<&'m str> {
    message.strip_prefix(intro)?.strip_prefix('`')?.split('`').next()
}

/// Every text between backticks.
fn backticked(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// Says that a name is not known and which one may have been meant.
fn unknown(name: &str, known: &[&str]) -> String {
    let nearest = known
        .iter()
        .filter(|_| name.len() <= REPEATED)
        .map(|known| (strsim::damerau_levenshtein(name, known), known))
        .filter(|(distance, known)| *distance <= 1 + known.len() / 4)
        .min();
    match nearest {
        Some((_, nearest)) => format!("is not known; did you mean `{nearest}`?"),
        None if known.is_empty() => "is not known; none is taken here".to_owned(),
        None => format!("is not known; known are {}", known.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_a_megabyte_is_neither_repeated_nor_compared() {
        let long = "x".repeat(1_000_000);
        let error = explain(&long, &format!("unknown field `{long}`, expected one of `title`, `media_uri`"));
        assert!(error.field.len() < 1000 && error.message.ends_with("known are title, media_uri"), "{}", error.message);
        let error = explain("title", &format!("invalid type: string \"{long}\", expected i64"));
        assert!(error.message.len() < 1000);
    }

    #[test]
    fn names_the_field_and_the_nearest_known_one() {
        let error = explain("titel", "unknown field `titel`, expected one of `title`, `media_uri`");
        assert_eq!((error.field.as_str(), error.message.as_str()), ("titel", "is not known; did you mean `title`?"));
        let error = explain("a[0]", "unknown field `x`, expected `windows` or `y2`");
        assert_eq!(error.field, "a[0].x");
        assert_eq!(explain(".", "missing field `title` at line 1 column 2").field, "title");
        assert_eq!(
            explain("n", "invalid type: string, expected i64 at line 1 column 2").message,
            "invalid type: string, expected i64"
        );
    }
}
