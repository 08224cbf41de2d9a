//! A set of rules: loaded as a whole or not at all.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use rhai::{AST, CustomExpr, Dynamic, Engine, Expr, ImmutableString, Module, Position, Shared, Stmt};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use utoipa::ToSchema;

use super::check::Checker;
use super::decision::HEALTH_RULE;
use super::error::{RuleError, hint};
use super::evaluate::Evaluation;
use super::facts::{self, SECTIONS, Sections};
use super::grammar::clauses;
use super::rules::{BUILT_IN, HEALTH};
use super::shape::Shape;
use super::{call, examples, sandbox};

/// Bytes of one file: a rule takes about 300.
pub const MAX_FILE_BYTES: usize = 256 * 1024;
/// Files of a set.
pub const MAX_FILES: usize = 200;
/// Rules of a set, so that a cycle over all of them stays within milliseconds.
pub const MAX_RULES: usize = 2_000;
/// The longest cooldown; the governors' memory is kept no longer.
const MAX_COOLDOWN: Duration = Duration::from_secs(7 * 24 * 3600);

/// Whether a rule's proposals are carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// They are.
    #[default]
    Act,
    /// They are only recorded.
    Observe,
}

/// What is known of a rule without running it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RuleInfo {
    /// Unique in the set.
    pub name: String,
    /// 1 to 10; a larger one is carried out first.
    pub priority: i64,
    /// Seconds until it may act on the same target again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cooldown_seconds: Option<u64>,
    /// Whether it acts.
    pub mode: Mode,
    /// Its file.
    pub file: String,
    /// The line on which it begins.
    pub line: usize,
    /// The action that it proposes.
    pub action: String,
}

pub(super) struct Rule {
    pub(super) info: RuleInfo,
    pub(super) each: Option<(ImmutableString, Expr)>,
    pub(super) when: Option<Expr>,
    pub(super) kind: &'static str,
    pub(super) arguments: Vec<Expr>,
    pub(super) then_at: Position,
    pub(super) because: Expr,
    pub(super) sections: Sections,
}

pub(super) struct Deduct {
    pub(super) points: i64,
    pub(super) per_item: bool,
    pub(super) value: Expr,
    pub(super) because: Expr,
    pub(super) sections: Sections,
    pub(super) line: usize,
}

#[derive(Default)]
pub(super) struct File {
    pub(super) name: String,
    pub(super) constants: Vec<(ImmutableString, Dynamic)>,
    pub(super) functions: Option<Shared<Module>>,
    pub(super) rules: Vec<Rule>,
    pub(super) deductions: Vec<Deduct>,
}

/// Rules that passed every check, compiled, with the engine that runs them.
pub struct RuleSet {
    pub(super) engine: Engine,
    pub(super) files: Vec<File>,
    /// The sections that rules and deductions mention: the others need no conversion.
    pub(super) rule_sections: Sections,
    pub(super) health_sections: Sections,
    infos: Vec<RuleInfo>,
    sources: BTreeMap<String, String>,
    hash: String,
}

impl std::fmt::Debug for RuleSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RuleSet").field("hash", &self.hash).field("rules", &self.infos.len()).finish()
    }
}

impl RuleSet {
    /// Loads a set from file names and sources. Without a `health.rhai` the built-in one is used.
    ///
    /// # Errors
    /// Everything that is wrong, in the order of the files; nothing is loaded then.
    pub fn load(sources: &BTreeMap<String, String>) -> Result<Self, Vec<RuleError>> {
        let sources = complete(sources.clone());
        bounds(&sources)?;
        let engine = sandbox::engine();
        let mut loader = Loader::new(&engine);
        let files = sources.iter().map(|(name, source)| loader.file(name, source)).collect::<Vec<_>>();
        let mut errors = loader.errors;
        if errors.is_empty() {
            let count: usize = files.iter().map(|file| file.rules.len()).sum();
            if count > MAX_RULES {
                errors.push(RuleError::whole("rules", format!("{count} rules; at most {MAX_RULES} are taken")));
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let infos = files.iter().flat_map(|file| &file.rules).map(|rule| rule.info.clone()).collect();
        let union = |sections: &mut dyn Iterator<Item = Sections>| sections.fold(Sections::default(), Sections::and);
        let rule_sections = union(&mut files.iter().flat_map(|file| &file.rules).map(|rule| rule.sections));
        let health_sections = union(&mut files.iter().flat_map(|file| &file.deductions).map(|it| it.sections));
        let hash = hash(&sources);
        let set = Self { engine, files, rule_sections, health_sections, infos, sources, hash };
        let errors = set.try_out();
        if errors.is_empty() { Ok(set) } else { Err(errors) }
    }

    /// The rules that come with the service.
    pub fn built_in() -> Self {
        let sources = BUILT_IN.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        Self::load(&sources).expect("a test loads the built-in rules, and they do not change after it")
    }

    /// SHA-256 over names and sources, as 64 hexadecimal digits.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// The files by name, `health.rhai` included: loading them again gives the same hash.
    pub fn sources(&self) -> &BTreeMap<String, String> {
        &self.sources
    }

    /// The rules, by file and line.
    pub fn rules(&self) -> &[RuleInfo] {
        &self.infos
    }

    /// Runs every clause against an empty platform (guards respected) and a full one (every clause, whatever the
    /// guards say), so that wrong types are found now and not in the cycle that needs the rule.
    fn try_out(&self) -> Vec<RuleError> {
        let mut errors = Vec::new();
        for (snapshot, every_clause) in [(examples::empty(), false), (examples::full(), true)] {
            let sections = self.rule_sections.and(self.health_sections);
            let mut evaluation = Evaluation::new(&self.engine, facts::scope(&snapshot, sections), None);
            for file in &self.files {
                evaluation.enter(file);
                for rule in &file.rules {
                    if let Err(broken) = evaluation.rule(rule, every_clause) {
                        errors.push(broken.at_load(&file.name, rule.info.line, &format!("rule {}", rule.info.name)));
                    }
                }
                for deduct in &file.deductions {
                    if let Err(broken) = evaluation.deduct(deduct, every_clause) {
                        errors.push(broken.at_load(&file.name, deduct.line, "deduct"));
                    }
                }
            }
        }
        errors.sort_by(|a, b| (&a.file, a.line, a.column, &a.message).cmp(&(&b.file, b.line, b.column, &b.message)));
        errors.dedup();
        errors
    }
}

/// Adds the built-in health rules to a set that has none.
pub(super) fn complete(mut sources: BTreeMap<String, String>) -> BTreeMap<String, String> {
    sources.entry(HEALTH.to_owned()).or_insert_with(|| {
        BUILT_IN.iter().find(|(name, _)| *name == HEALTH).map_or_else(String::new, |(_, text)| (*text).to_owned())
    });
    sources
}

pub(super) fn hash(sources: &BTreeMap<String, String>) -> String {
    let mut digest = Sha256::new();
    for (name, source) in sources {
        // Lengths keep the end of one part from being read as the beginning of the next.
        for part in [name, source] {
            digest.update((part.len() as u64).to_be_bytes());
            digest.update(part.as_bytes());
        }
    }
    digest.finalize().iter().fold(String::with_capacity(64), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn bounds(sources: &BTreeMap<String, String>) -> Result<(), Vec<RuleError>> {
    let mut errors = Vec::new();
    if sources.len() > MAX_FILES {
        errors.push(RuleError::whole("rules", format!("{} files; at most {MAX_FILES} are taken", sources.len())));
    }
    for (name, source) in sources {
        if name.is_empty() || name.chars().any(char::is_control) {
            errors.push(RuleError::whole(
                &name.escape_debug().to_string(),
                "a file's name may hold no control characters",
            ));
        } else if source.len() > MAX_FILE_BYTES {
            let message = format!("{} bytes; at most {MAX_FILE_BYTES} are taken", source.len());
            errors.push(RuleError::whole(name, message));
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

/// Reads files one after the other; names must be unique over all of them.
struct Loader<'a> {
    engine: &'a Engine,
    shapes: BTreeMap<String, Shape>,
    health_shapes: BTreeMap<String, Shape>,
    names: BTreeMap<String, (String, usize)>,
    errors: Vec<RuleError>,
}

impl<'a> Loader<'a> {
    fn new(engine: &'a Engine) -> Self {
        let example = serde_json::to_value(examples::full()).unwrap_or_default();
        let shapes: BTreeMap<_, _> =
            SECTIONS.iter().map(|name| ((*name).to_owned(), Shape::of(&example[*name]))).collect();
        let mut health_shapes = shapes.clone();
        health_shapes.remove("system");
        Self { engine, shapes, health_shapes, names: BTreeMap::new(), errors: Vec::new() }
    }

    fn file(&mut self, name: &str, source: &str) -> File {
        let ast = match self.engine.compile(source) {
            Ok(ast) => ast,
            Err(error) => {
                self.errors.push(RuleError::at(name, error.1, error.0.to_string()));
                return File::default();
            }
        };
        let shapes = if name == HEALTH { self.health_shapes.clone() } else { self.shapes.clone() };
        let mut checker = Checker::new(name, &shapes, &ast);
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
        file
    }

    fn constants(&mut self, ast: &AST, checker: &mut Checker<'_>, file: &mut File) {
        for statement in ast.statements() {
            let Stmt::Var(variable, flags, position) = statement else { continue };
            let (ident, value, _) = &**variable;
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
            checker.declare(&ident.name, shape, ident.pos);
            if checker.errors.len() > known {
                continue;
            }
            let mut evaluation = Evaluation::new(self.engine, rhai::Scope::new(), None);
            evaluation.enter(file);
            match evaluation.value(value) {
                Ok(value) => file.constants.push((ident.name.clone(), facts::shared(value))),
                Err(error) => {
                    let broken = super::evaluate::Broken::from(error);
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
                file.deductions.extend(deduct(custom, line, checker));
            } else {
                checker.error(position, format!("deductions stand in {HEALTH}"));
            }
            return;
        }
        let Some(rule) = rule(custom, position, &file.name, checker) else { return };
        let place = (file.name.clone(), line);
        if let Some((other, at)) = self.names.insert(rule.info.name.clone(), place) {
            checker.error(position, format!("rule {} is already defined in {other}:{at}", rule.info.name));
        }
        file.rules.push(rule);
    }
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

fn deduct(custom: &CustomExpr, line: usize, checker: &mut Checker<'_>) -> Option<Deduct> {
    let written = clauses(custom);
    let [points, condition, because] = written.as_slice() else { return None };
    let amount = number(points.value);
    if !(1..=100).contains(&amount) {
        checker.error(points.value.position(), "points are a whole number from 1 to 100");
    }
    checker.expression(condition.value);
    checker.expression(because.value);
    Some(Deduct {
        points: amount,
        per_item: condition.keyword == "each",
        value: condition.value.clone(),
        because: because.value.clone(),
        sections: checker.take_sections(),
        line,
    })
}

/// A rule from its clauses. What is wrong goes to the checker; a rule without an action is none.
fn rule(custom: &CustomExpr, position: Position, file: &str, checker: &mut Checker<'_>) -> Option<Rule> {
    let written = clauses(custom);
    let mut info = RuleInfo {
        name: String::new(),
        priority: 0,
        cooldown_seconds: None,
        mode: Mode::Act,
        file: file.to_owned(),
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
                Ok(cooldown) if cooldown <= MAX_COOLDOWN => info.cooldown_seconds = Some(cooldown.as_secs()),
                Ok(_) => checker.error(at, "a cooldown is at most 7days"),
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
        let shape = checker.expression(list);
        if matches!(shape, Shape::Map(_) | Shape::Plain) {
            checker.error(list.position(), "each goes through a list");
        }
        checker.declare(&name.1, shape.item(), *at);
        each = Some((name.1.clone(), list.clone()));
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
    let (when, because) = (when.cloned(), because?.clone());
    Some(Rule { info, each, when, kind, arguments, then_at, because, sections })
}

fn action(then: &Expr, checker: &mut Checker<'_>) -> Option<(&'static str, Vec<Expr>, Position)> {
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
    Some((kind, call.args.to_vec(), *at))
}

fn is_name(name: &str) -> bool {
    name.len() <= 64
        && name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.chars().all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '_')
}
