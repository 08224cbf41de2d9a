//! Expressions between steps: Rhai in a sandbox without files, clock or output, and with a bound on everything.
//!
//! An expression sees `input`, `steps.ID` (results), `status.ID`, and where they make sense `item`, `index` and
//! `result`. Which it mentions is known when it is read, so that only those are handed in.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use rhai::module_resolvers::DummyModuleResolver;
use rhai::packages::{
    BasicArrayPackage, BasicMapPackage, BasicMathPackage, CorePackage, LogicPackage, MoreStringPackage, Package,
};
use rhai::{AST, ASTNode, Dynamic, Engine, EvalAltResult, Expr, Map, OptimizationLevel, Scope};
use serde_json::Value;

/// Operations of one evaluation: about ten milliseconds.
const MAX_OPERATIONS: u64 = 200_000;
/// Bytes of a text.
const MAX_STRING: usize = 1 << 20;
/// Items of a list; a fan-out takes as many.
const MAX_ARRAY: usize = 10_000;
/// Entries of a map.
const MAX_MAP: usize = 10_000;
/// Bytes of an expression's text.
const MAX_SOURCE: usize = 64 * 1024;

static ENGINE: LazyLock<Engine> = LazyLock::new(engine);

fn engine() -> Engine {
    let mut engine = Engine::new_raw();
    for package in [
        CorePackage::new().as_shared_module(),
        LogicPackage::new().as_shared_module(),
        BasicMathPackage::new().as_shared_module(),
        BasicArrayPackage::new().as_shared_module(),
        BasicMapPackage::new().as_shared_module(),
        MoreStringPackage::new().as_shared_module(),
    ] {
        engine.register_global_module(package);
    }
    engine
        .set_optimization_level(OptimizationLevel::None)
        .set_fail_on_invalid_map_property(true)
        .set_max_operations(MAX_OPERATIONS)
        .set_max_call_levels(8)
        .set_max_expr_depths(32, 16)
        .set_max_string_size(MAX_STRING)
        .set_max_array_size(MAX_ARRAY)
        .set_max_map_size(MAX_MAP)
        .set_max_modules(0)
        .set_module_resolver(DummyModuleResolver::new())
        .on_print(|_| {})
        .on_debug(|_, _, _| {});
    for symbol in ["eval", "import", "export", "print", "debug"] {
        engine.disable_symbol(symbol);
    }
    // `disable_symbol` does not reach a function that a package brings; a function pointer could still call it.
    engine.register_fn("sleep", |_: i64| refuse("sleep")).register_fn("sleep", |_: f64| refuse("sleep"));
    engine.register_fn("exit", || refuse("exit")).register_fn("exit", |_: Dynamic| refuse("exit"));
    engine
}

fn refuse(name: &str) -> Result<(), Box<EvalAltResult>> {
    Err(format!("{name} is not available in pipelines").into())
}

/// The names that an expression mentions below `steps`, `status` or `input`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Mentions {
    pub(super) names: BTreeSet<String>,
    /// It takes the whole, or looks something up by a name that is worked out.
    pub(super) whole: bool,
}

impl Mentions {
    fn any(&self) -> bool {
        self.whole || !self.names.is_empty()
    }
}

/// An expression that was read.
#[derive(Debug, Clone)]
pub(super) struct Expression {
    ast: AST,
    pub(super) input: Mentions,
    pub(super) steps: Mentions,
    pub(super) status: Mentions,
    pub(super) item: bool,
    index: bool,
    result: bool,
}

/// What expressions of a run may look up.
pub(super) trait Facts {
    fn input(&self) -> &Value;
    /// The steps that are done, by id: status and result.
    fn step(&self, id: &str) -> Option<(&'static str, &Value)>;
    /// Every step's id.
    fn ids(&self) -> Vec<&str>;
}

/// What only one instance of a step sees.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Local<'a> {
    pub(super) item: Option<(i64, &'a Value)>,
    pub(super) result: Option<&'a Value>,
}

/// Names that an expression may use without defining them.
const NAMES: [&str; 6] = ["input", "steps", "status", "item", "index", "result"];

impl Expression {
    /// Reads it; the error says where it is wrong.
    pub(super) fn read(source: &str) -> Result<Self, String> {
        if source.len() > MAX_SOURCE {
            return Err(format!("is longer than {MAX_SOURCE} bytes"));
        }
        let ast = ENGINE.compile(source).map_err(|error| error.to_string())?;
        let (mut input, mut steps, mut status) = Default::default();
        let (mut item, mut index, mut result) = (false, false, false);
        ast.walk(&mut |path: &[ASTNode]| {
            if let Some(ASTNode::Expr(Expr::Variable(variable, _, _))) = path.last() {
                let parent = path.len().checked_sub(2).and_then(|at| path.get(at));
                match variable.1.as_str() {
                    "input" => mention(&mut input, parent),
                    "steps" => mention(&mut steps, parent),
                    "status" => mention(&mut status, parent),
                    "item" => item = true,
                    "index" => index = true,
                    "result" => result = true,
                    _ => {}
                }
            }
            true
        });
        Ok(Self { ast, input, steps, status, item, index, result })
    }

    /// Whether it always gives the same.
    pub(super) fn is_constant(&self) -> bool {
        !(self.input.any() || self.steps.any() || self.status.any() || self.item || self.index || self.result)
    }

    /// `input.NAME` and nothing else gives the name.
    pub(super) fn plain_input(&self, source: &str) -> Option<String> {
        let name = source.trim().strip_prefix("input.")?;
        (self.input.names.len() == 1 && self.input.names.contains(name)).then(|| name.to_owned())
    }

    /// Evaluates it.
    pub(super) fn value(&self, facts: &dyn Facts, local: Local<'_>) -> Result<Value, String> {
        let mut scope = Scope::new();
        if self.input.any() {
            scope.push_constant_dynamic("input", dynamic(facts.input())?);
        }
        for (name, mentions) in [("steps", &self.steps), ("status", &self.status)] {
            if mentions.any() {
                scope.push_constant_dynamic(name, looked_up(facts, mentions, name == "status")?);
            }
        }
        if let Some((index, item)) = local.item {
            if self.item {
                scope.push_constant_dynamic("item", dynamic(item)?);
            }
            if self.index {
                scope.push_constant_dynamic("index", Dynamic::from(index));
            }
        }
        if let Some(result) = local.result.filter(|_| self.result) {
            scope.push_constant_dynamic("result", dynamic(result)?);
        }
        let value: Dynamic = ENGINE.eval_ast_with_scope(&mut scope, &self.ast).map_err(|error| error.to_string())?;
        json(&value)
    }
}

fn looked_up(facts: &dyn Facts, mentions: &Mentions, status: bool) -> Result<Dynamic, String> {
    let ids = if mentions.whole { facts.ids() } else { mentions.names.iter().map(String::as_str).collect() };
    let mut map = Map::new();
    for id in ids {
        let value = match facts.step(id) {
            Some((state, _)) if status => Dynamic::from(state),
            Some((_, result)) => dynamic(result)?,
            None => Dynamic::UNIT,
        };
        map.insert(id.into(), value);
    }
    Ok(map.into())
}

fn mention(mentions: &mut Mentions, parent: Option<&ASTNode>) {
    let first = match parent {
        Some(ASTNode::Expr(Expr::Dot(chain, ..) | Expr::Index(chain, ..))) => match &chain.rhs {
            Expr::Dot(rest, ..) | Expr::Index(rest, ..) => Some(&rest.lhs),
            last => Some(last),
        },
        _ => None,
    };
    match first {
        Some(Expr::Property(property, _)) => drop(mentions.names.insert(property.2.to_string())),
        Some(Expr::StringConstant(text, _)) => drop(mentions.names.insert(text.to_string())),
        _ => mentions.whole = true,
    }
}

fn dynamic(value: &Value) -> Result<Dynamic, String> {
    rhai::serde::to_dynamic(value).map_err(|error| error.to_string())
}

fn json(value: &Dynamic) -> Result<Value, String> {
    if value.is_unit() {
        return Ok(Value::Null);
    }
    let value: Value = rhai::serde::from_dynamic(value).map_err(|error| error.to_string())?;
    Ok(value)
}

/// JSON whose texts may hold `${ expression }`. A text that is one expression becomes what it gives, of any type.
#[derive(Debug, Clone)]
pub(super) enum Template {
    Literal(Value),
    Expression(Expression),
    Text(Vec<Template>),
    List(Vec<Template>),
    Map(Vec<(String, Template)>),
}

impl Template {
    /// Reads it; `found` is called with every expression and its source. The error says where in the JSON.
    pub(super) fn read(value: &Value, found: &mut dyn FnMut(&Expression, &str)) -> Result<Self, (String, String)> {
        Ok(match value {
            Value::String(text) => Self::text(text, found).map_err(|error| (String::new(), error))?,
            Value::Array(items) => {
                let read =
                    |(at, item)| Self::read(item, found).map_err(|(path, error)| (format!("[{at}]{path}"), error));
                Self::List(items.iter().enumerate().map(read).collect::<Result<_, _>>()?)
            }
            Value::Object(fields) => {
                let read = |(name, item): (&String, &Value)| {
                    let item = Self::read(item, found).map_err(|(path, error)| (format!(".{name}{path}"), error))?;
                    Ok((name.clone(), item))
                };
                Self::Map(fields.iter().map(read).collect::<Result<_, (String, String)>>()?)
            }
            other => Self::Literal(other.clone()),
        })
    }

    fn text(text: &str, found: &mut dyn FnMut(&Expression, &str)) -> Result<Self, String> {
        let (mut parts, mut literal, mut rest) = (Vec::new(), String::new(), text);
        while let Some(at) = rest.find("${") {
            if rest[..at].ends_with('$') {
                literal.push_str(&rest[..at - 1]); // `$${` stands for itself
                literal.push_str("${");
                rest = &rest[at + 2..];
                continue;
            }
            literal.push_str(&rest[..at]);
            let inner = &rest[at + 2..];
            let end = end_of_expression(inner).ok_or("has a `${` without its `}`")?;
            let source = inner[..end].trim();
            let expression = Expression::read(source)?;
            found(&expression, source);
            if !literal.is_empty() {
                parts.push(Self::Literal(Value::String(std::mem::take(&mut literal))));
            }
            parts.push(Self::Expression(expression));
            rest = &inner[end + 1..];
        }
        literal.push_str(rest);
        if !literal.is_empty() || parts.is_empty() {
            parts.push(Self::Literal(Value::String(literal)));
        }
        Ok(if parts.len() == 1 { parts.remove(0) } else { Self::Text(parts) })
    }

    /// Fills it in.
    pub(super) fn value(&self, facts: &dyn Facts, local: Local<'_>) -> Result<Value, String> {
        Ok(match self {
            Self::Literal(value) => value.clone(),
            Self::Expression(expression) => expression.value(facts, local)?,
            Self::Text(parts) => {
                let mut text = String::new();
                for part in parts {
                    match part.value(facts, local)? {
                        Value::String(part) => text.push_str(&part),
                        other => text.push_str(&other.to_string()),
                    }
                }
                Value::String(text)
            }
            Self::List(items) => {
                Value::Array(items.iter().map(|item| item.value(facts, local)).collect::<Result<_, _>>()?)
            }
            Self::Map(fields) => {
                let filled = fields.iter().map(|(name, item)| Ok((name.clone(), item.value(facts, local)?)));
                Value::Object(filled.collect::<Result<_, String>>()?)
            }
        })
    }
}

/// Where the `}` of an expression stands, past braces and texts inside.
fn end_of_expression(text: &str) -> Option<usize> {
    let (mut depth, mut quote, mut escaped) = (0_usize, None, false);
    for (at, letter) in text.char_indices() {
        match (quote, letter) {
            _ if escaped => escaped = false,
            (Some(_), '\\') => escaped = true,
            (Some(open), letter) if letter == open => quote = None,
            (Some(_), _) => {}
            (None, '"' | '`' | '\'') => quote = Some(letter),
            (None, '{') => depth += 1,
            (None, '}') if depth == 0 => return Some(at),
            (None, '}') => depth -= 1,
            _ => {}
        }
    }
    None
}

/// The name that an unknown one was probably meant to be.
pub(super) fn did_you_mean<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    known
        .into_iter()
        .map(|candidate| (strsim::normalized_damerau_levenshtein(name, candidate), candidate))
        .filter(|(likeness, _)| *likeness >= 0.5)
        .max_by(|(one, _), (other, _)| one.total_cmp(other))
        .map(|(_, candidate)| format!("; did you mean `{candidate}`?"))
        .unwrap_or_default()
}

/// Whether a step may be called so: no name that expressions use otherwise.
pub(super) fn is_reserved(name: &str) -> bool {
    NAMES.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    struct Known(Value, Value);
    impl Facts for Known {
        fn input(&self) -> &Value {
            &self.0
        }
        fn step(&self, id: &str) -> Option<(&'static str, &Value)> {
            self.1.get(id).map(|value| ("completed", value))
        }
        fn ids(&self) -> Vec<&str> {
            self.1.as_object().map(|map| map.keys().map(String::as_str).collect()).unwrap_or_default()
        }
    }

    fn value(source: &str) -> Result<Value, String> {
        let known = Known(json!({ "n": 3, "name": "ann", "none": null }), json!({ "a": [1, 2], "b-c": { "x": 1.5 } }));
        let item = json!({ "k": 7 });
        Expression::read(source)?.value(&known, Local { item: Some((4, &item)), result: None })
    }

    #[test]
    fn expressions_see_inputs_results_and_items() {
        for (source, wanted) in [
            ("input.n + 1", json!(4)),
            ("steps.a.len()", json!(2)),
            (r#"steps["b-c"].x"#, json!(1.5)),
            ("status.a == \"completed\"", json!(true)),
            ("item.k + index", json!(11)),
            ("#{ a: input.name, b: [()] }", json!({ "a": "ann", "b": [null] })),
            ("steps.a.map(|x| x * input.n)", json!([3, 6])),
            ("steps.keys().len()", json!(2)),
            ("input.none", json!(null)),
            ("let x = 1; x + 1", json!(2)),
        ] {
            assert_eq!(value(source), Ok(wanted), "{source}");
        }
    }

    #[test]
    fn what_is_mentioned_is_known_beforehand() {
        let read = |source| Expression::read(source).expect(source);
        assert_eq!(read("steps.a.b + steps[\"c\"].d").steps.names.into_iter().collect::<Vec<_>>(), ["a", "c"]);
        assert!(read("steps[input.x]").steps.whole && read("steps.values()").steps.whole);
        assert!(read("1 + 1").is_constant() && !read("index").is_constant());
        assert_eq!(read("input.list").plain_input("input.list").as_deref(), Some("list"));
    }

    #[test]
    fn nothing_runs_away_or_leaves_the_sandbox() {
        for source in [
            "loop {}",
            "let x = \"a\"; loop { x += x; }",
            "let x = []; loop { x.push(1); }",
            "fn f() { f() } f()",
            "sleep(1)",
            "exit()",
            "import \"x\" as y; 1",
            "eval(\"1\")",
            "input.nosuch",
            "input.n = 4",
            "nosuch",
        ] {
            assert!(value(source).is_err(), "{source}");
        }
    }

    #[test]
    fn templates_keep_types_and_join_texts() {
        let known = Known(json!({ "id": 7, "tags": ["x"] }), json!({}));
        let mut seen = 0;
        let template =
            json!({ "url": "http://h/${ input.id }/x${`${input.id}}`}", "tags": "${input.tags}", "keep": "$${no}" });
        let template = Template::read(&template, &mut |_, _| seen += 1).expect("a template");
        let filled = template.value(&known, Local::default()).expect("filled");
        assert_eq!(filled, json!({ "url": "http://h/7/x7}", "tags": ["x"], "keep": "${no}" }));
        assert_eq!(seen, 3);
        let broken = Template::read(&json!({ "a": ["${ 1 +"] }), &mut |_, _| {}).expect_err("broken");
        assert_eq!(broken.0, ".a[0]");
    }
}
