//! The expressions that most rules are made of, evaluated without the engine: literals, fields, comparisons, `&&`, `||`,
//! `!`, sums, texts with values in them, and asking a list for its length or an item.
//!
//! It gives what the engine would give, or nothing: then the engine is asked, and all that is unusual (mixed types,
//! missing fields, overflow) is as the engine has it, with its errors. A test compares the two.

use std::borrow::Cow;
use std::fmt::Write as _;

use rhai::{ASTFlags, Dynamic, Expr, FloatWrapper, FnCallExpr, ImmutableString, Map, Stmt};

use super::facts::{Fact, Facts};
use super::mentions::{Mentions, Place};
use super::operator::{Arithmetic, Comparison};
use super::sandbox::MAX_STRING;

/// An expression of a rule: as written, and plainly where it can be.
#[derive(Debug)]
pub(super) struct Formula {
    pub(super) written: Expr,
    pub(super) plain: Option<Plain>,
}

#[derive(Debug)]
pub(super) enum Plain {
    Unknown,
    Truth(bool),
    Int(i64),
    Float(f64),
    Text(ImmutableString),
    /// A list or map that is written out, or a constant.
    Held(Dynamic),
    /// A section, or the item that `each` gives, and fields from there.
    Path(Root, Vec<Step>),
    Length(Box<Plain>),
    IsEmpty(Box<Plain>),
    Contains(Box<[Plain; 2]>),
    Not(Box<Plain>),
    All(Vec<Plain>),
    Any(Vec<Plain>),
    Compare(Comparison, Box<[Plain; 2]>),
    Calculate(Arithmetic, Box<[Plain; 2]>),
    Interpolate(Vec<Plain>),
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Root {
    Section(usize),
    Item,
}

/// One field: by slot in a fact, by name in a value of the engine.
#[derive(Debug)]
pub(super) struct Step {
    slot: Option<usize>,
    name: ImmutableString,
}

/// What names in an expression mean.
pub(super) struct Names<'a> {
    pub(super) mentions: &'a Mentions,
    pub(super) constants: &'a [(ImmutableString, Dynamic)],
    /// The item of `each`, and where it is mentioned.
    pub(super) item: Option<(&'a ImmutableString, Option<Place>)>,
}

impl Formula {
    pub(super) fn new(written: &Expr, names: &Names<'_>) -> Self {
        Self { written: written.clone(), plain: names.plain(written) }
    }
}

impl Names<'_> {
    fn plain(&self, expression: &Expr) -> Option<Plain> {
        Some(match expression {
            Expr::Unit(_) => Plain::Unknown,
            Expr::BoolConstant(truth, _) => Plain::Truth(*truth),
            Expr::IntegerConstant(number, _) => Plain::Int(*number),
            Expr::FloatConstant(number, _) => Plain::Float(**number),
            Expr::StringConstant(text, _) => Plain::Text(text.clone()),
            Expr::Array(..) | Expr::Map(..) => Plain::Held(expression.get_literal_value(None)?),
            Expr::Variable(variable, ..) if variable.2.is_empty() => self.variable(&variable.1)?.0,
            Expr::Dot(chain, flags, _) => {
                let Expr::Variable(variable, ..) = &chain.lhs else { return None };
                self.chain(&variable.1, &chain.rhs, *flags)?
            }
            Expr::And(parts, _) => Plain::All(self.each(parts.iter())?),
            Expr::Or(parts, _) => Plain::Any(self.each(parts.iter())?),
            Expr::InterpolatedString(parts, _) => Plain::Interpolate(self.each(parts.iter())?),
            Expr::FnCall(call, _) if !call.is_qualified() => self.operation(call)?,
            // What stands between `${` and `}` is a block.
            Expr::Stmt(block) => match block.statements() {
                [Stmt::Expr(expression)] => self.plain(expression)?,
                _ => return None,
            },
            _ => return None,
        })
    }

    fn each<'e>(&self, parts: impl Iterator<Item = &'e Expr>) -> Option<Vec<Plain>> {
        parts.map(|part| self.plain(part)).collect()
    }

    fn variable(&self, name: &ImmutableString) -> Option<(Plain, Option<Place>)> {
        if let Some((_, place)) = self.item.filter(|(item, _)| *item == name) {
            return Some((Plain::Path(Root::Item, Vec::new()), place));
        }
        if let Some((_, value)) = self.constants.iter().find(|(constant, _)| constant == name) {
            return Some((constant(value)?, None));
        }
        let (slot, place) = Mentions::section(name)?;
        Some((Plain::Path(Root::Section(slot), Vec::new()), Some(place)))
    }

    /// `base.field.field`, with a method at the end or without.
    fn chain(&self, base: &ImmutableString, mut rest: &Expr, mut flags: ASTFlags) -> Option<Plain> {
        let (Plain::Path(root, mut steps), mut place) = self.variable(base)? else { return None };
        loop {
            // `?.` and brackets are left to the engine.
            if !flags.is_empty() {
                return None;
            }
            let member = match rest {
                Expr::Dot(chain, inner, _) => {
                    (rest, flags) = (&chain.rhs, *inner);
                    &chain.lhs
                }
                last => match last {
                    Expr::Property(property, _) if property.2 == "len" => {
                        return Some(Plain::Length(Plain::Path(root, steps).into()));
                    }
                    Expr::Property(property, _) if property.2 == "is_empty" => {
                        return Some(Plain::IsEmpty(Plain::Path(root, steps).into()));
                    }
                    Expr::MethodCall(call, _) => return self.method(Plain::Path(root, steps), call),
                    Expr::Property(property, _) => {
                        steps.push(self.step(&mut place, &property.2)?);
                        return Some(Plain::Path(root, steps));
                    }
                    _ => return None,
                },
            };
            let Expr::Property(property, _) = member else { return None };
            steps.push(self.step(&mut place, &property.2)?);
        }
    }

    fn step(&self, place: &mut Option<Place>, name: &ImmutableString) -> Option<Step> {
        let slot = match *place {
            Some(known) => {
                let (slot, next) = self.mentions.find(known, name)?;
                *place = Some(next);
                Some(slot)
            }
            None => None,
        };
        Some(Step { slot, name: name.clone() })
    }

    fn method(&self, base: Plain, call: &FnCallExpr) -> Option<Plain> {
        match (call.name.as_str(), call.args.as_slice()) {
            ("len", []) => Some(Plain::Length(base.into())),
            ("is_empty", []) => Some(Plain::IsEmpty(base.into())),
            ("contains", [wanted]) => Some(Plain::Contains([base, self.plain(wanted)?].into())),
            _ => None,
        }
    }

    fn operation(&self, call: &FnCallExpr) -> Option<Plain> {
        match (call.name.as_str(), call.args.as_slice()) {
            ("!", [operand]) => Some(Plain::Not(self.plain(operand)?.into())),
            (operator, [left, right]) => {
                let compared = Comparison::of(operator);
                let calculated = Arithmetic::of(operator);
                if compared.is_none() && calculated.is_none() {
                    return None;
                }
                let operands = [self.plain(left)?, self.plain(right)?].into();
                match compared {
                    Some(comparison) => Some(Plain::Compare(comparison, operands)),
                    None => Some(Plain::Calculate(calculated?, operands)),
                }
            }
            _ => None,
        }
    }
}

/// A constant of the file. One that a closure shares is the engine's.
fn constant(value: &Dynamic) -> Option<Plain> {
    if value.is_shared() {
        return None;
    }
    Some(match Value::of(value)? {
        Value::Unknown => Plain::Unknown,
        Value::Truth(truth) => Plain::Truth(truth),
        Value::Int(number) => Plain::Int(number),
        Value::Float(number) => Plain::Float(number),
        Value::Text(text) => Plain::Text(text.as_ref().into()),
        _ => Plain::Held(value.clone()),
    })
}

/// A value, borrowed where it can be.
#[derive(Debug)]
pub(super) enum Value<'a> {
    Unknown,
    Truth(bool),
    Int(i64),
    Float(f64),
    Text(Cow<'a, str>),
    /// A map of the facts.
    Map,
    /// A list of the facts.
    List {
        first: usize,
        count: usize,
    },
    /// A list, map or something else of the engine.
    Held(&'a Dynamic),
}

impl<'a> Value<'a> {
    fn of(value: &'a Dynamic) -> Option<Self> {
        Some(match () {
            () if value.is_shared() => return None,
            () if value.is_unit() => Self::Unknown,
            () if value.is_bool() => Self::Truth(value.as_bool().ok()?),
            () if value.is_int() => Self::Int(value.as_int().ok()?),
            () if value.is_float() => Self::Float(value.as_float().ok()?),
            () if value.is_string() => {
                Self::Text(Cow::Owned(value.as_immutable_string_ref().ok()?.as_str().to_owned()))
            }
            () => Self::Held(value),
        })
    }

    /// For the engine; a map or list of the facts is not for it.
    pub(super) fn into_dynamic(self) -> Option<Dynamic> {
        Some(match self {
            Self::Unknown => Dynamic::UNIT,
            Self::Truth(truth) => truth.into(),
            Self::Int(number) => number.into(),
            Self::Float(number) => number.into(),
            Self::Text(text) => text.as_ref().into(),
            Self::Held(value) => value.clone(),
            Self::Map | Self::List { .. } => return None,
        })
    }
}

/// The item that `each` is at.
#[derive(Debug, Clone, Copy)]
pub(super) enum Item<'a> {
    Fact(&'a Fact),
    Held(&'a Dynamic),
}

/// Evaluates plain expressions over facts, and counts what it does as the engine counts its operations.
pub(super) struct Reading<'a> {
    pub(super) facts: &'a Facts<'a>,
    pub(super) item: Option<Item<'a>>,
    pub(super) operations: u64,
}

impl<'a> Reading<'a> {
    /// What the engine would give, or nothing.
    pub(super) fn value(&mut self, plain: &'a Plain) -> Option<Value<'a>> {
        self.operations += 1;
        Some(match plain {
            Plain::Unknown => Value::Unknown,
            Plain::Truth(truth) => Value::Truth(*truth),
            Plain::Int(number) => Value::Int(*number),
            Plain::Float(number) => Value::Float(*number),
            Plain::Text(text) => Value::Text(Cow::Borrowed(text)),
            Plain::Held(value) => Value::Held(value),
            Plain::Path(root, steps) => self.path(*root, steps)?,
            Plain::Length(base) => Value::Int(self.length(base)?),
            Plain::IsEmpty(base) => Value::Truth(self.length(base)? == 0),
            Plain::Contains(operands) => Value::Truth(self.contains(&operands[0], &operands[1])?),
            Plain::Not(operand) => Value::Truth(!self.truth(operand)?),
            Plain::All(parts) => Value::Truth(self.until(parts, false)?),
            Plain::Any(parts) => Value::Truth(self.until(parts, true)?),
            Plain::Compare(comparison, operands) => {
                let (left, right) = (self.value(&operands[0])?, self.value(&operands[1])?);
                Value::Truth(comparison.holds(&left, &right)?)
            }
            Plain::Calculate(arithmetic, operands) => {
                let (left, right) = (self.value(&operands[0])?, self.value(&operands[1])?);
                arithmetic.result(&left, &right)?
            }
            Plain::Interpolate(parts) => Value::Text(Cow::Owned(self.text(parts)?)),
        })
    }

    fn truth(&mut self, plain: &'a Plain) -> Option<bool> {
        match self.value(plain)? {
            Value::Truth(truth) => Some(truth),
            _ => None,
        }
    }

    /// Whether one of the parts is `wanted`; those after it are not evaluated.
    fn until(&mut self, parts: &'a [Plain], wanted: bool) -> Option<bool> {
        for part in parts {
            if self.truth(part)? == wanted {
                return Some(wanted);
            }
        }
        Some(!wanted)
    }

    fn path(&mut self, root: Root, steps: &[Step]) -> Option<Value<'a>> {
        let mut fact = match root {
            Root::Section(slot) => &self.facts.values[slot],
            Root::Item => match self.item? {
                Item::Fact(fact) => fact,
                Item::Held(value) => return held(value, steps),
            },
        };
        for (index, step) in steps.iter().enumerate() {
            self.operations += 1;
            fact = match fact {
                Fact::Map { first } => self.facts.values.get(first + step.slot?)?,
                Fact::Whole(value) => return held(value, &steps[index..]),
                _ => return None,
            };
        }
        self.fact(fact)
    }

    fn fact(&self, fact: &'a Fact) -> Option<Value<'a>> {
        Some(match fact {
            Fact::Missing => return None,
            Fact::Unknown => Value::Unknown,
            Fact::Truth(truth) => Value::Truth(*truth),
            Fact::Int(number) => Value::Int(*number),
            Fact::Float(number) => Value::Float(*number),
            Fact::Text(range) => Value::Text(Cow::Borrowed(&self.facts.texts[range.clone()])),
            Fact::Map { .. } => Value::Map,
            Fact::List { first, count } => Value::List { first: *first, count: *count },
            Fact::Whole(value) => return Value::of(value),
        })
    }

    fn length(&mut self, base: &'a Plain) -> Option<i64> {
        let length = match self.value(base)? {
            Value::List { count, .. } => count,
            Value::Held(value) => value.as_array_ref().ok()?.len(),
            Value::Text(text) => text.chars().count(),
            _ => return None,
        };
        i64::try_from(length).ok()
    }

    /// Texts in a list of texts, or in a text.
    fn contains(&mut self, base: &'a Plain, wanted: &'a Plain) -> Option<bool> {
        let (base, wanted) = (self.value(base)?, self.value(wanted)?);
        let Value::Text(wanted) = wanted else { return None };
        match base {
            Value::Text(text) => Some(text.contains(wanted.as_ref())),
            Value::List { first, count } => {
                for fact in &self.facts.values[first..first + count] {
                    self.operations += 1;
                    let Value::Text(text) = self.fact(fact)? else { return None };
                    if text == wanted {
                        return Some(true);
                    }
                }
                Some(false)
            }
            _ => None,
        }
    }

    fn text(&mut self, parts: &'a [Plain]) -> Option<String> {
        let mut text = String::with_capacity(64); // most reasons are about as long
        for part in parts {
            match self.value(part)? {
                Value::Unknown => (),
                Value::Truth(truth) => text.push_str(if truth { "true" } else { "false" }),
                Value::Int(number) => write!(text, "{number}").ok()?,
                Value::Float(number) => write!(text, "{}", FloatWrapper::new(number)).ok()?,
                Value::Text(part) => text.push_str(&part),
                Value::Map | Value::List { .. } | Value::Held(_) => return None,
            }
            if text.len() > MAX_STRING {
                return None;
            }
        }
        Some(text)
    }
}

/// Fields of a value that the engine holds.
fn held<'a>(value: &'a Dynamic, steps: &[Step]) -> Option<Value<'a>> {
    let [step, rest @ ..] = steps else { return Value::of(value) };
    if value.is_shared() {
        return None;
    }
    let map = value.read_lock::<Map>()?;
    // What lies behind the lock is copied, so that only plain values come out of it.
    match held(map.get(step.name.as_str())?, rest)? {
        Value::Unknown => Some(Value::Unknown),
        Value::Truth(truth) => Some(Value::Truth(truth)),
        Value::Int(number) => Some(Value::Int(number)),
        Value::Float(number) => Some(Value::Float(number)),
        Value::Text(text) => Some(Value::Text(Cow::Owned(text.into_owned()))),
        Value::Map | Value::List { .. } | Value::Held(_) => None,
    }
}
