//! serde's refusals in words that a client can act on.

use crate::problem::FieldError;

/// Characters of a client's own words that an answer repeats. It also bounds the search for the name that was meant,
/// whose cost grows with the length.
const REPEATED: usize = 200;

/// The refusal of one field: `path` is where serde stood, `message` what it said.
pub fn explain(path: &str, message: &str) -> FieldError {
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
    let message = message.split(" at line ").next().unwrap_or(message);
    FieldError { field: if path.is_empty() { "body".to_owned() } else { path.to_owned() }, message: in_words(message) }
}

/// What serde and the standard library say of a value that does not fit, without the names of Rust.
fn in_words(message: &str) -> String {
    let told = message.strip_prefix("invalid type: ").or_else(|| message.strip_prefix("invalid value: "));
    if let Some((found, expected)) = told.and_then(|told| told.rsplit_once(", expected ")) {
        return format!("takes {}, not {}", kind(expected), value(found));
    }
    if let Some((found, expected)) =
        message.strip_prefix("invalid length ").and_then(|told| told.split_once(", expected "))
    {
        return format!("takes {}, not a list of {found}", kind(expected));
    }
    if message.starts_with("unknown variant ") {
        let names = backticked(message);
        if let Some((given, known)) = names.split_first() {
            return format!("takes {}, not `{given}`", known.join(", "));
        }
    }
    match message {
        "invalid digit found in string"
        | "cannot parse integer from empty string"
        | "number too large to fit in target type"
        | "number too small to fit in target type" => "takes a whole number".to_owned(),
        "invalid float literal" | "cannot parse float from empty string" => "takes a number".to_owned(),
        "provided string was not `true` or `false`" => "takes true or false".to_owned(),
        other => other.to_owned(),
    }
}

/// What is taken, from what serde expected.
fn kind(expected: &str) -> &str {
    match expected {
        "u8" | "u16" | "u32" | "u64" | "u128" | "usize" => "a whole number from 0",
        "i8" | "i16" | "i32" | "i64" | "i128" | "isize" => "a whole number",
        "f32" | "f64" => "a number",
        "a string" | "a borrowed string" | "string" | "a character" => "a text",
        "a boolean" => "true or false",
        "a map" => "an object",
        "a sequence" => "a list",
        "unit" | "option" => "null",
        _ if expected.starts_with("struct ") || expected.starts_with("internally tagged enum ") => "an object",
        _ if expected.starts_with("tuple") || expected.starts_with("a tuple") => "a list",
        _ if expected.contains("enum ") => "one of its names, or an object with one",
        other => other,
    }
}

/// What was given, from how serde names it.
fn value(found: &str) -> String {
    match found {
        "map" => return "an object".to_owned(),
        "sequence" => return "a list".to_owned(),
        "unit" | "unit value" | "null" | "Option value" => return "null".to_owned(),
        _ => {}
    }
    for (theirs, ours) in [("string ", "the text "), ("integer ", "the number "), ("floating point ", "the number ")] {
        if let Some(rest) = found.strip_prefix(theirs) {
            return format!("{ours}{}", rest.trim_matches('`'));
        }
    }
    found.strip_prefix("boolean ").unwrap_or(found).trim_matches('`').to_owned()
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
            explain("n", "invalid type: string \"x\", expected i64 at line 1 column 2").message,
            "takes a whole number, not the text \"x\""
        );
    }

    #[test]
    fn a_value_that_does_not_fit_is_told_without_the_names_of_rust() {
        for (theirs, ours) in [
            ("invalid value: integer `-1`, expected u64", "takes a whole number from 0, not the number -1"),
            ("invalid type: null, expected struct NewTask", "takes an object, not null"),
            ("invalid type: string \"x\", expected a map", "takes an object, not the text \"x\""),
            (
                "invalid type: string \"a, expected b\", expected a boolean",
                "takes true or false, not the text \"a, expected b\"",
            ),
            ("invalid type: floating point `1.5`, expected i64", "takes a whole number, not the number 1.5"),
            ("invalid type: boolean `true`, expected a string", "takes a text, not true"),
            ("invalid type: map, expected a sequence", "takes a list, not an object"),
            ("invalid length 0, expected struct Frame with 4 elements", "takes an object, not a list of 0"),
            ("invalid digit found in string", "takes a whole number"),
            ("unknown variant `king`, expected one of `viewer`, `operator`", "takes viewer, operator, not `king`"),
            ("`7` is not a time", "`7` is not a time"),
        ] {
            assert_eq!(explain("n", theirs).message, ours);
        }
    }
}
