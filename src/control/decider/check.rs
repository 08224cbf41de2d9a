//! The static check: every name, field and function in a rule is looked up before the rule ever runs, also behind a
//! short-circuit, in template strings and in the items that `each` binds. On the way it notes what of the snapshot is
//! mentioned.

use std::collections::{BTreeMap, BTreeSet};

use rhai::{AST, ASTFlags, ASTNode, BinaryExpr, Expr, FnCallExpr, Position, Stmt, StmtBlock};

use super::error::{RuleError, hint};
use super::facts::{SECTIONS, Sections};
use super::mentions::{Mentions, Place};
use super::rule_set::MAX_ERRORS;
use super::sandbox::FUNCTIONS;
use super::shape::Shape;
use crate::control::action::ACTION_KINDS;

/// What is known of a value: its shape, how the rule calls it, and where in the snapshot it stands.
struct Seen {
    shape: Shape,
    path: String,
    place: Option<Place>,
}

impl Seen {
    fn any() -> Self {
        Self { shape: Shape::Any, path: String::new(), place: None }
    }
    fn item(&self) -> Self {
        Self { shape: self.shape.item(), path: self.path.clone(), place: None }
    }
}

/// Looks through the expressions of one file.
pub(super) struct Checker<'a> {
    file: &'a str,
    shapes: &'a BTreeMap<String, Shape>,
    functions: BTreeSet<String>,
    names: Vec<(String, Shape, Option<Place>)>,
    /// Inside a function only its parameters are seen (what a closure captures is one of its parameters).
    in_function: bool,
    /// The sections that were mentioned since [`Checker::take_sections`].
    sections: Sections,
    pub(super) mentions: Mentions,
    pub(super) errors: Vec<RuleError>,
}

impl<'a> Checker<'a> {
    /// `shapes` are the sections that this file may use, `mentions` what was mentioned in other files.
    pub(super) fn new(file: &'a str, shapes: &'a BTreeMap<String, Shape>, mentions: Mentions, ast: &AST) -> Self {
        let functions = ast.iter_functions().map(|function| function.name.to_owned()).collect();
        Self {
            file,
            shapes,
            functions,
            names: Vec::new(),
            in_function: false,
            sections: Sections::default(),
            mentions,
            errors: Vec::new(),
        }
    }

    pub(super) fn error(&mut self, position: Position, message: impl Into<String>) {
        if !self.full() {
            self.errors.push(RuleError::at(self.file, position, message));
        }
    }

    /// As much is wrong as is told; the rest need not be looked at, nor for what it was meant to be.
    fn full(&self) -> bool {
        self.errors.len() >= MAX_ERRORS
    }

    /// The sections mentioned since the last call.
    pub(super) fn take_sections(&mut self) -> Sections {
        std::mem::take(&mut self.sections)
    }

    /// Makes a constant or the item of an `each` known. It may hide nothing: what an operator reads is what counts.
    pub(super) fn declare(&mut self, name: &str, shape: Shape, place: Option<Place>, position: Position) {
        if SECTIONS.contains(&name) {
            self.error(position, format!("{name} is a section of the snapshot; take another name"));
        } else if self.names.iter().any(|(known, ..)| known == name) {
            self.error(position, format!("{name} is already defined in this file; take another name"));
        }
        self.names.push((name.to_owned(), shape, place));
    }

    /// Makes a variable of a block known. It may hide another variable, but no section.
    fn local(&mut self, name: &str, shape: Shape, position: Position) {
        if SECTIONS.contains(&name) {
            self.error(position, format!("{name} is a section of the snapshot; take another name"));
        }
        self.names.push((name.to_owned(), shape, None));
    }

    /// Forgets the newest name.
    pub(super) fn forget(&mut self) {
        self.names.pop();
    }

    /// The functions that the file defines, and the closures in its rules.
    pub(super) fn functions(&mut self, ast: &AST) {
        let depth = self.names.len();
        for function in ast.iter_functions() {
            let closure = function.name.starts_with("anon$");
            if !closure && (ACTION_KINDS.contains(&function.name) || FUNCTIONS.contains(&function.name)) {
                let name = function.name;
                self.error(Position::NONE, format!("fn {name} hides what comes with the language; take another name"));
            }
            for parameter in &function.params {
                let shape = self.shapes.get(*parameter).filter(|_| closure).cloned();
                if !closure && SECTIONS.contains(parameter) {
                    let name = function.name;
                    self.error(
                        Position::NONE,
                        format!("fn {name}: {parameter} is a section of the snapshot; take another name"),
                    );
                }
                self.names.push(((*parameter).to_owned(), shape.unwrap_or(Shape::Any), None));
            }
        }
        self.in_function = true;
        let own: Vec<*const Stmt> = ast.statements().iter().map(std::ptr::from_ref).collect();
        ast.walk(&mut |path: &[ASTNode]| {
            if let [ASTNode::Stmt(statement)] = path
                && !own.contains(&std::ptr::from_ref(*statement))
            {
                self.statement(statement);
            }
            true
        });
        self.in_function = false;
        self.names.truncate(depth);
        self.sections = Sections::default();
    }

    /// Looks through an expression; answers the shape of what it gives.
    pub(super) fn expression(&mut self, expression: &Expr) -> Shape {
        self.see(expression).shape
    }

    /// Looks through the list of an `each`; answers the shape of its items, and where they are mentioned.
    pub(super) fn list(&mut self, list: &Expr) -> (Shape, Option<Place>) {
        let seen = self.look(list);
        if matches!(seen.shape, Shape::Map(_) | Shape::Plain) {
            self.error(list.position(), "each goes through a list");
        }
        let items = seen.place.map(|place| self.mentions.items(place));
        (seen.shape.item(), items)
    }

    /// Looks through an expression whose value is used, with all that is in it.
    fn see(&mut self, expression: &Expr) -> Seen {
        let seen = self.look(expression);
        self.used(&seen);
        seen
    }

    fn used(&mut self, seen: &Seen) {
        if let Some(place) = seen.place {
            self.mentions.whole(place);
        }
    }

    /// Looks through an expression of which only a part is used.
    fn look(&mut self, expression: &Expr) -> Seen {
        if self.full() {
            return Seen::any();
        }
        match expression {
            Expr::Variable(variable, _, position) => self.variable(&variable.1, !variable.2.is_empty(), *position),
            Expr::Dot(chain, flags, _) => {
                let base = self.look(&chain.lhs);
                self.dot(base, &chain.rhs, *flags)
            }
            Expr::Index(chain, flags, _) => {
                let base = self.see(&chain.lhs);
                self.index(&base, &chain.rhs, *flags)
            }
            Expr::FnCall(call, position) | Expr::MethodCall(call, position) => self.call(call, *position, false),
            Expr::InterpolatedString(parts, _) | Expr::Array(parts, _) => {
                parts.iter().for_each(|part| drop(self.see(part)));
                Seen::any()
            }
            Expr::And(parts, _) | Expr::Or(parts, _) | Expr::Coalesce(parts, _) => {
                parts.iter().for_each(|part| drop(self.see(part)));
                Seen::any()
            }
            Expr::Map(fields, _) => {
                fields.0.iter().for_each(|(_, value)| drop(self.see(value)));
                Seen::any()
            }
            Expr::Stmt(block) => {
                self.block(block);
                Seen::any()
            }
            Expr::Custom(_, position) => {
                self.error(*position, "a rule may not stand inside another statement");
                Seen::any()
            }
            _ => Seen::any(),
        }
    }

    fn variable(&mut self, name: &str, qualified: bool, position: Position) -> Seen {
        if qualified {
            self.error(position, "modules are not available in rules");
            return Seen::any();
        }
        if let Some((_, shape, place)) = self.names.iter().rev().find(|(known, ..)| known == name) {
            let (shape, place) = (shape.clone(), *place);
            if self.shapes.contains_key(name) {
                self.sections.insert(name);
            }
            return Seen { shape, path: name.to_owned(), place };
        }
        if self.in_function {
            let known = self.names.iter().map(|(name, ..)| name.as_str());
            let message = format!("unknown name {name}; a function sees only its parameters{}", hint("", name, known));
            self.error(position, message);
            return Seen::any();
        }
        if let Some(shape) = self.shapes.get(name) {
            self.sections.insert(name);
            let place = Mentions::section(name).map(|(_, place)| place);
            return Seen { shape: shape.clone(), path: name.to_owned(), place };
        }
        let known = self.shapes.keys().map(String::as_str).chain(self.names.iter().map(|(name, ..)| name.as_str()));
        let message = format!("unknown name {name}{}", hint("", name, known));
        self.error(position, message);
        Seen::any()
    }

    /// `base.rest`, where the rest may be a longer chain.
    fn dot(&mut self, base: Seen, rest: &Expr, flags: ASTFlags) -> Seen {
        match rest {
            Expr::Dot(chain, inner, _) if !flags.contains(ASTFlags::BREAK) => {
                let next = self.member(&base, &chain.lhs);
                self.dot(next, &chain.rhs, *inner)
            }
            Expr::Index(chain, inner, _) if !flags.contains(ASTFlags::BREAK) => {
                let next = self.member(&base, &chain.lhs);
                self.index(&next, &chain.rhs, *inner)
            }
            member => self.member(&base, member),
        }
    }

    /// `base[rest]`, where the rest may be an index and a longer chain.
    fn index(&mut self, base: &Seen, rest: &Expr, flags: ASTFlags) -> Seen {
        match rest {
            Expr::Dot(chain, inner, _) if !flags.contains(ASTFlags::BREAK) => {
                let next = self.at(base, &chain.lhs);
                self.dot(next, &chain.rhs, *inner)
            }
            Expr::Index(chain, inner, _) if !flags.contains(ASTFlags::BREAK) => {
                let next = self.at(base, &chain.lhs);
                self.index(&next, &chain.rhs, *inner)
            }
            index => self.at(base, index),
        }
    }

    fn at(&mut self, base: &Seen, index: &Expr) -> Seen {
        self.used(base);
        match (index, &base.shape) {
            (Expr::StringConstant(name, position), Shape::Map(_)) => {
                Seen { place: None, ..self.field(base, name, *position) }
            }
            _ => {
                self.see(index);
                base.item()
            }
        }
    }

    fn member(&mut self, base: &Seen, member: &Expr) -> Seen {
        match member {
            Expr::Property(property, position) => self.field(base, &property.2, *position),
            Expr::MethodCall(call, position) | Expr::FnCall(call, position) => {
                self.call(call, *position, true);
                self.asked(base, &call.name);
                let keeps_items = matches!(call.name.as_str(), "filter" | "extract" | "sort" | "order" | "reverse");
                let gives_item = matches!(call.name.as_str(), "find" | "pop" | "shift" | "get");
                match &base.shape {
                    Shape::List(_) if keeps_items => {
                        Seen { shape: base.shape.clone(), path: base.path.clone(), place: None }
                    }
                    Shape::List(_) if gives_item => base.item(),
                    _ => Seen::any(),
                }
            }
            other => self.see(other),
        }
    }

    /// What a method needs of its value: everything, or of a list only its length or its items.
    fn asked(&mut self, base: &Seen, method: &str) {
        match (base.place, &base.shape, method) {
            (Some(_), Shape::List(_), "len" | "is_empty") => (),
            (Some(place), Shape::List(_), "contains") => {
                let items = self.mentions.items(place);
                self.mentions.whole(items);
            }
            _ => self.used(base),
        }
    }

    fn field(&mut self, base: &Seen, name: &str, position: Position) -> Seen {
        match base.shape.field(&base.path, name) {
            Ok(shape) => {
                let place = base.place.map(|place| self.mentions.field(place, name));
                Seen { shape, path: format!("{}.{name}", base.path), place }
            }
            Err(message) => {
                self.error(position, message);
                Seen::any()
            }
        }
    }

    fn call(&mut self, call: &FnCallExpr, position: Position, method: bool) -> Seen {
        // Whether a value is there at all needs nothing of what is in it.
        let presence =
            matches!(call.name.as_str(), "==" | "!=") && call.args.iter().any(|it| matches!(it, Expr::Unit(_)));
        for argument in &call.args {
            drop(if presence { self.look(argument) } else { self.see(argument) });
        }
        let name = call.name.as_str();
        // Operators are calls too; some, such as `in`, bear no mark but their name.
        let named = name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_');
        if call.is_qualified() {
            self.error(position, "modules are not available in rules");
        } else if ACTION_KINDS.contains(&name) {
            self.error(position, format!("{name} is an action: it stands right after `then` and nowhere else"));
        } else if named && !FUNCTIONS.contains(&name) && !self.functions.contains(name) {
            let known = FUNCTIONS.iter().copied().chain(self.functions.iter().map(String::as_str));
            let what = if method { "method" } else { "function" };
            let message = format!("unknown {what} {name}{}", hint("", name, known));
            self.error(position, message);
        }
        Seen::any()
    }

    fn block(&mut self, block: &StmtBlock) {
        let depth = self.names.len();
        block.iter().for_each(|statement| self.statement(statement));
        self.names.truncate(depth);
    }

    fn pair(&mut self, pair: &BinaryExpr) {
        self.see(&pair.lhs);
        self.see(&pair.rhs);
    }

    fn statement(&mut self, statement: &Stmt) {
        match statement {
            Stmt::Expr(expression) => drop(self.see(expression)),
            Stmt::FnCall(call, position) => drop(self.call(call, *position, false)),
            Stmt::Block(block) => self.block(block),
            Stmt::Var(variable, _, _) => {
                let shape = self.expression(&variable.1);
                self.local(&variable.0.name, shape, variable.0.pos);
            }
            Stmt::Assignment(assignment) => self.pair(&assignment.1),
            Stmt::If(flow, _) | Stmt::While(flow, _) | Stmt::Do(flow, _, _) => {
                self.see(&flow.expr);
                self.block(&flow.body);
                self.block(&flow.branch);
            }
            Stmt::For(head, _) => {
                let (name, counter, flow) = &**head;
                let list = self.see(&flow.expr);
                let depth = self.names.len();
                self.local(&name.name, list.shape.item(), name.pos);
                if let Some(counter) = counter {
                    self.local(&counter.name, Shape::Plain, counter.pos);
                }
                self.block(&flow.body);
                self.names.truncate(depth);
            }
            Stmt::Switch(switch, _) => {
                self.see(&switch.0);
                switch.1.expressions.iter().for_each(|case| self.pair(case));
            }
            Stmt::BreakLoop(Some(value), _, _) => drop(self.see(value)),
            Stmt::Return(_, _, position) => self.error(*position, "return and throw are not available in rules"),
            Stmt::TryCatch(_, position) => self.error(*position, "try is not available in rules"),
            Stmt::Import(_, position) | Stmt::Export(_, position) => {
                self.error(*position, "modules are not available in rules");
            }
            _ => (),
        }
    }
}
