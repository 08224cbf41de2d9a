//! The two statements of the rule language, as custom syntax of the rhai engine.
//!
//! ```text
//! rule "name" priority N [cooldown "1m"] [mode "observe"] [each x in expr] [when expr] then action(…) because expr;
//! deduct N when expr because expr;
//! deduct N for each expr because expr;
//! ```
//!
//! The engine only parses them: their clauses are read from the syntax tree at load, and evaluated one by one.

use rhai::{CustomExpr, Dynamic, Engine, Expr, ImmutableString, LexError, ParseError, Position};

use super::error::hint;

/// What may follow a rule's name, in any order.
const CLAUSES: [&str; 6] = ["priority", "cooldown", "mode", "each", "when", "then"];

const TEXT: &str = "$string$";
const NUMBER: &str = "$int$";
const NAME: &str = "$ident$";
const EXPRESSION: &str = "$expr$";

/// Teaches the engine both statements.
pub(super) fn register(engine: &mut Engine) {
    engine.register_custom_syntax_with_state_raw("rule", next_of_rule, true, |_, _, _| Ok(Dynamic::UNIT));
    engine.register_custom_syntax_with_state_raw("deduct", next_of_deduct, true, |_, _, _| Ok(Dynamic::UNIT));
}

/// The parser asks what comes next. `state` holds what came last: the symbols themselves do not tell a rule that is
/// *named* `when` from the clause.
fn next_of_rule(
    _: &[ImmutableString],
    ahead: &str,
    state: &mut Dynamic,
) -> Result<Option<ImmutableString>, ParseError> {
    let last = state.clone().into_immutable_string().unwrap_or_default();
    let (next, came): (&str, &str) = match last.as_str() {
        "" => (TEXT, "clause"),
        "clause" => match CLAUSES.iter().find(|clause| **clause == ahead) {
            Some(clause) => (clause, clause),
            None => return Err(unexpected(ahead, &CLAUSES)),
        },
        "priority" => (NUMBER, "clause"),
        "cooldown" | "mode" => (TEXT, "clause"),
        "each" => (NAME, "each name"),
        "each name" => ("in", "each name in"),
        "each name in" | "when" => (EXPRESSION, "clause"),
        "then" => (EXPRESSION, "action"),
        "action" if ahead == "because" => ("because", "because"),
        "action" => return Err(unexpected(ahead, &["because"])),
        "because" => (EXPRESSION, "end"),
        _ => return Ok(None),
    };
    *state = came.into();
    Ok(Some(next.into()))
}

fn next_of_deduct(
    _: &[ImmutableString],
    ahead: &str,
    state: &mut Dynamic,
) -> Result<Option<ImmutableString>, ParseError> {
    let last = state.clone().into_immutable_string().unwrap_or_default();
    let (next, came): (&str, &str) = match last.as_str() {
        "" => (NUMBER, "points"),
        "points" if ahead == "when" => ("when", "when"),
        "points" if ahead == "for" => ("for", "for"),
        "points" => return Err(unexpected(ahead, &["when", "for each"])),
        "for" => ("each", "when"),
        "when" => (EXPRESSION, "condition"),
        "condition" if ahead == "because" => ("because", "because"),
        "condition" => return Err(unexpected(ahead, &["because"])),
        "because" => (EXPRESSION, "end"),
        _ => return Ok(None),
    };
    *state = came.into();
    Ok(Some(next.into()))
}

fn unexpected(ahead: &str, wanted: &[&str]) -> ParseError {
    let near = hint("", ahead, wanted.iter().copied());
    let message =
        format!("expected {}, found {}{near}", wanted.join(", "), if ahead.is_empty() { "the end" } else { ahead });
    LexError::ImproperSymbol(ahead.to_owned(), message).into_err(Position::NONE)
}

/// One clause as written: its keyword and what stands after it.
pub(super) struct Clause<'a> {
    pub(super) keyword: &'a str,
    pub(super) value: &'a Expr,
}

/// The clauses of a statement in the order written. The first is the keyword `rule` or `deduct` itself; `each`
/// gives two, `each` with the name and `in` with the list.
pub(super) fn clauses(statement: &CustomExpr) -> Vec<Clause<'_>> {
    let mut values = statement.inputs.iter();
    let mut keyword = "";
    let mut clauses = Vec::new();
    for token in &statement.tokens {
        if token.starts_with('$') {
            clauses.extend(values.next().map(|value| Clause { keyword, value }));
        } else {
            keyword = token.as_str();
        }
    }
    clauses
}
