//! From the text of a file to its rules, with everything that is wrong in it.

use std::collections::BTreeMap;
use std::time::Duration;

use rhai::{AST, CustomExpr, Dynamic, Engine, Expr, ImmutableString, Position, Stmt};

use super::check::Checker;
use super::decision::HEALTH_RULE;
use super::error::{RuleError, hint, looks_like};
use super::evaluate::Evaluation;
use super::facts::{Facts, SECTIONS};
use super::grammar::clauses;
use super::mentions::Mentions;
use super::plain::{Formula, Names};
use super::rule_set::{Deduct, Each, File, MAX_CONSTANTS, MAX_ERRORS, MAX_RULES, Mode, Rule, RuleInfo};
use super::rules::HEALTH;
use super::sandbox::{CYCLE_OPERATIONS, FUNCTIONS, LOAD_TIME};
use super::shape::Shape;
use super::{call, examples};
use crate::clock::SystemClock;
use crate::control::action::ACTION_KINDS;

/// The shortest cooldown; a cycle is no shorter.
const MIN_COOLDOWN: Duration = Duration::from_secs(1);
/// The longest cooldown; the governors' memory is kept no longer.
const MAX_COOLDOWN: Duration = Duration::from_secs(7 * 24 * 3600);

/// Functions and closures of a file: every name in it is looked up among their parameters.
const MAX_FUNCTIONS: usize = 1_000;

/// Reads files one after the other; names must be unique over all of them.
pub(super) struct Loader<'a> {
    engine: &'a Engine,
    shapes: BTreeMap<String, Shape>,
    health_shapes: BTreeMap<String, Shape>,
    names: BTreeMap<String, (String, usize)>,
    /// What all files mention of the snapshot.
    pub(super) mentions: Mentions,
    constants: usize,
    /// Operations of all constants so far.
    spent: u64,
    pub(super) errors: Vec<RuleError>,
}

impl<'a> Loader<'a> {
    pub(super) fn new(engine: &'a Engine) -> Self {
        let example = serde_json::to_value(examples::full()).unwrap_or_default();
        let shapes: BTreeMap<_, _> =
            SECTIONS.iter().map(|name| ((*name).to_owned(), Shape::of(&example[*name]))).collect();
        let mut health_shapes = shapes.clone();
        health_shapes.remove("system");
        let (names, mentions) = (BTreeMap::new(), Mentions::default());
        Self { engine, shapes, health_shapes, names, mentions, constants: 0, spent: 0, errors: Vec::new() }
    }

    pub(super) fn file(&mut self, name: &str, source: &str) -> File {
        if self.errors.len() >= MAX_ERRORS {
            return File::default();
        }
        let ast = match self.engine.compile(source) {
            Ok(ast) => ast,
            Err(error) => {
                let message = foreign(source, error.1, &self.shapes).unwrap_or_else(|| error.0.to_string());
                self.errors.push(RuleError::at(name, error.1, message));
                return File::default();
            }
        };
        let functions = ast.iter_functions().count();
        if functions > MAX_FUNCTIONS {
            let message = format!("{functions} functions and closures; at most {MAX_FUNCTIONS} are taken");
            self.errors.push(RuleError::whole(name, message));
            return File::default();
        }
        let shapes = if name == HEALTH { self.health_shapes.clone() } else { self.shapes.clone() };
        let mut checker = Checker::new(name, &shapes, std::mem::take(&mut self.mentions), &ast);
        let mut file = File { name: name.to_owned(), ..File::default() };
        checker.functions(&ast);
        // Constants first: a rule may stand above the constant that it names.
        self.constants(&ast, &mut checker, &mut file);
        for statement in ast.statements() {
            match statement {
                Stmt::Expr(expression) => match &**expression {
                    Expr::Custom(custom, position) => self.custom(custom, *position, &mut checker, &mut file),
                    other => checker.error(other.position(), ONLY),
                },
                Stmt::Var(..) | Stmt::Noop(_) => (),
                other => checker.error(other.position(), ONLY),
            }
        }
        file.functions = ast.has_functions().then(|| ast.shared_lib().clone());
        self.errors.append(&mut checker.errors);
        self.mentions = checker.mentions;
        file
    }

    fn constants(&mut self, ast: &AST, checker: &mut Checker<'_>, file: &mut File) {
        for statement in ast.statements() {
            let Stmt::Var(variable, flags, position) = statement else { continue };
            let (ident, value, _) = &**variable;
            self.constants += 1;
            if self.constants > MAX_CONSTANTS {
                return checker.error(*position, format!("too many constants: at most {MAX_CONSTANTS} are taken"));
            }
            if self.spent >= CYCLE_OPERATIONS {
                let message = format!("the constants before it took {CYCLE_OPERATIONS} operations; write plain values");
                return checker.error(*position, message);
            }
            if !flags.contains(rhai::ASTFlags::CONSTANT) {
                checker
                    .error(*position, format!("write `const {} = …;`: rules keep nothing between cycles", ident.name));
                continue;
            }
            let known = checker.errors.len();
            let shape = checker.expression(value);
            let sections = checker.take_sections();
            if let Some(section) = sections.names().next() {
                checker.error(value.position(), format!("a constant cannot depend on {section}, which changes"));
            }
            checker.declare(&ident.name, shape, None, ident.pos);
            if checker.errors.len() > known {
                continue;
            }
            let clock = SystemClock::shared();
            let facts = Facts::none(&checker.mentions);
            let mut evaluation = Evaluation::new(self.engine, &facts, Some(&clock), LOAD_TIME);
            let found = evaluation.constant(file, value);
            self.spent += evaluation.spent();
            drop(evaluation);
            match found {
                Ok(value) => file.constants.push((ident.name.clone(), value)),
                Err(broken) => {
                    let line = ident.pos.line().unwrap_or(0);
                    checker.errors.push(broken.at_load(&file.name, line, &format!("const {}", ident.name)));
                }
            }
        }
    }

    fn custom(&mut self, custom: &CustomExpr, position: Position, checker: &mut Checker<'_>, file: &mut File) {
        let line = position.line().unwrap_or(0);
        if custom.tokens.first().is_some_and(|keyword| keyword == "deduct") {
            if file.name == HEALTH {
                file.deductions.extend(deduct(custom, line, &file.constants, checker));
            } else {
                checker.error(position, format!("deductions stand in {HEALTH}"));
            }
            return;
        }
        if self.names.len() >= MAX_RULES {
            return checker.error(position, format!("too many rules: at most {MAX_RULES} are taken"));
        }
        let Some(rule) = rule(custom, position, file, checker) else { return };
        let place = (file.name.clone(), line);
        if let Some((other, at)) = self.names.insert(rule.info.name.clone(), place) {
            checker.error(position, format!("rule {} is already defined in {other}:{at}", rule.info.name));
        }
        file.rules.push(rule);
    }
}

/// What is said of a letter that is not one of the language: which it is, for many look like one, and which name its
/// word looks like.
fn foreign(source: &str, position: Position, shapes: &BTreeMap<String, Shape>) -> Option<String> {
    let line: Vec<char> = source.lines().nth(position.line()? - 1)?.chars().collect();
    let at = position.position()?.checked_sub(1)?;
    let letter = *line.get(at).filter(|letter| !letter.is_ascii())?;
    let ours = |letter: &char| letter.is_ascii_alphanumeric() || *letter == '_' || !letter.is_ascii();
    let from = at - line[..at].iter().rev().take_while(|letter| ours(letter)).count();
    let word: String = line[from..].iter().take_while(|letter| ours(letter)).collect();
    let fields = shapes.values().flat_map(Shape::names);
    let names = shapes.keys().map(String::as_str).chain(fields).chain(ACTION_KINDS).chain(FUNCTIONS.iter().copied());
    let near = looks_like(&word, names).map_or_else(String::new, |near| format!("; did you mean {near}?"));
    let code = letter as u32;
    Some(format!("`{}` (U+{code:04X}) may stand only in a text or comment{near}", letter.escape_debug()))
}

const ONLY: &str = "only const, fn, rule and deduct may stand at the top of a file";

/// The text of a string literal.
fn text(expression: &Expr) -> String {
    match expression {
        Expr::StringConstant(text, _) => text.to_string(),
        _ => String::new(),
    }
}

fn number(expression: &Expr) -> i64 {
    match expression {
        Expr::IntegerConstant(number, _) => *number,
        _ => 0,
    }
}

fn deduct(
    custom: &CustomExpr,
    line: usize,
    constants: &[(ImmutableString, Dynamic)],
    checker: &mut Checker<'_>,
) -> Option<Deduct> {
    let written = clauses(custom);
    let [points, condition, because] = written.as_slice() else { return None };
    let amount = number(points.value);
    if !(1..=100).contains(&amount) {
        checker.error(points.value.position(), "points are a whole number from 1 to 100");
    }
    checker.expression(condition.value);
    checker.expression(because.value);
    let sections = checker.take_sections();
    let names = Names { mentions: &checker.mentions, constants, item: None };
    Some(Deduct {
        points: amount,
        per_item: condition.keyword == "each",
        value: Formula::new(condition.value, &names),
        because: Formula::new(because.value, &names),
        sections,
        line,
    })
}

/// A rule from its clauses. What is wrong goes to the checker; a rule without an action is none.
fn rule(custom: &CustomExpr, position: Position, file: &File, checker: &mut Checker<'_>) -> Option<Rule> {
    let written = clauses(custom);
    let mut info = RuleInfo {
        name: String::new(),
        priority: 0,
        cooldown_seconds: None,
        mode: Mode::Act,
        file: file.name.clone(),
        line: position.line().unwrap_or(0),
        action: String::new(),
    };
    let (mut each_name, mut each_list, mut when, mut then, mut because) = (None, None, None, None, None);
    let mut seen = Vec::new();
    for clause in &written {
        let at = clause.value.position();
        if seen.contains(&clause.keyword) {
            checker.error(at, format!("{} is written twice", clause.keyword));
        }
        seen.push(clause.keyword);
        match clause.keyword {
            "rule" => {
                info.name = text(clause.value);
                if !is_name(&info.name) {
                    checker.error(at, "a rule's name has 1 to 64 of a-z, 0-9 and _, and begins with a letter");
                } else if info.name == HEALTH_RULE {
                    checker.error(at, "health is the name under which health.rhai reports; take another name");
                }
            }
            "priority" => {
                info.priority = number(clause.value);
                if !(1..=10).contains(&info.priority) {
                    checker.error(at, "priority is a whole number from 1 to 10");
                }
            }
            "cooldown" => match humantime::parse_duration(&text(clause.value)) {
                Ok(cooldown) if (MIN_COOLDOWN..=MAX_COOLDOWN).contains(&cooldown) => {
                    info.cooldown_seconds = Some(cooldown.as_secs());
                }
                Ok(_) => checker.error(at, "a cooldown is between 1s and 7days"),
                Err(error) => checker.error(at, format!("cooldown is a time such as \"30s\" or \"5m\": {error}")),
            },
            "mode" => match text(clause.value).as_str() {
                "observe" => info.mode = Mode::Observe,
                other => {
                    let near = hint("", other, ["observe"]);
                    checker.error(at, format!("the only mode is \"observe\"; without it the rule acts{near}"));
                }
            },
            "each" => each_name = Some(clause.value),
            "in" => each_list = Some(clause.value),
            "when" => when = Some(clause.value),
            "then" => then = Some(clause.value),
            _ => because = Some(clause.value),
        }
    }
    if info.priority == 0 && !seen.contains(&"priority") {
        checker.error(position, "a rule needs a priority from 1 to 10");
    }
    let mut each = None;
    if let (Some(Expr::Variable(name, _, at)), Some(list)) = (each_name, each_list) {
        let (shape, items) = checker.list(list);
        checker.declare(&name.1, shape, items, *at);
        each = Some((&name.1, list, items));
    }
    when.iter().for_each(|when| drop(checker.expression(when)));
    let action = then.and_then(|then| action(then, checker));
    because.iter().for_each(|because| drop(checker.expression(because)));
    if each.is_some() {
        checker.forget();
    }
    let sections = checker.take_sections();
    let (kind, arguments, then_at) = action?;
    info.action = kind.to_owned();
    // All that is mentioned is known by now.
    let mentions = &checker.mentions;
    let outside = Names { mentions, constants: &file.constants, item: None };
    let names = Names { item: each.map(|(name, _, items)| (name, items)), ..outside };
    Some(Rule {
        info,
        each: each.map(|(name, list, items)| Each { name: name.clone(), list: Formula::new(list, &outside), items }),
        when: when.map(|when| Formula::new(when, &names)),
        kind,
        arguments: arguments.iter().map(|argument| Formula::new(argument, &names)).collect(),
        then_at,
        because: Formula::new(because?, &names),
        sections,
    })
}

fn action<'a>(then: &'a Expr, checker: &mut Checker<'_>) -> Option<(&'static str, &'a [Expr], Position)> {
    let Expr::FnCall(call, at) = then else {
        checker.error(then.position(), "after `then` stands one action, e.g. retry_failed_log(log.id)");
        return None;
    };
    call.args.iter().for_each(|argument| drop(checker.expression(argument)));
    let kind = match call::kind(&call.name) {
        Ok(kind) if !call.is_operator_call() && !call.is_qualified() => kind,
        Ok(_) => return None,
        Err(message) => {
            checker.error(*at, message);
            return None;
        }
    };
    if let Err(message) = call::check(kind, &call.args) {
        checker.error(*at, message);
    }
    Some((kind, &call.args, *at))
}

fn is_name(name: &str) -> bool {
    name.len() <= 64
        && name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.chars().all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '_')
}
