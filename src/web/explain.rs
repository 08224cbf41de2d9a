//! serde's refusals in words that a client can act on.

use crate::problem::FieldError;

/// The refusal of one field: `path` is where serde stood, `message` what it said.
pub(super) fn explain(path: &str, message: &str) -> FieldError {
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
