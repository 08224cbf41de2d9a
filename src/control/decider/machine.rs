//! The rhai engine at work on one file: for what is not evaluated plainly. Begun only when something is.

use rhai::{Caches, Dynamic, Engine, EvalAltResult, EvalContext, Expr, Expression, GlobalRuntimeState, Scope};

use super::rule_set::File;

/// The engine's state, with the sections in scope and the constants and functions of a file.
pub(super) struct Machine<'a> {
    engine: &'a Engine,
    pub(super) global: GlobalRuntimeState,
    caches: Caches,
    /// The file in sight, whose caches these are.
    file: Option<&'a File>,
    pub(super) scope: Scope<'static>,
    sections: usize,
}

impl Drop for Machine<'_> {
    fn drop(&mut self) {
        self.leave();
    }
}

impl<'a> Machine<'a> {
    /// With the sections in `scope`.
    pub(super) fn new(engine: &'a Engine, scope: Scope<'static>) -> Self {
        let (global, caches) = (engine.new_global_runtime_state(), Caches::new());
        Self { engine, global, caches, file: None, sections: scope.len(), scope }
    }

    /// Brings a file's constants and functions into sight, and the last one's out of it.
    pub(super) fn enter(&mut self, file: &'a File) {
        if self.file.is_some_and(|entered| std::ptr::eq(entered, file)) {
            return;
        }
        self.leave();
        self.scope.rewind(self.sections);
        for (name, value) in &file.constants {
            self.scope.push_constant_dynamic(name.clone(), value.clone());
        }
        self.global = self.engine.new_global_runtime_state();
        self.global.lib.extend(file.functions.clone());
        // Which function each operator and call means follows from the file and the types of the values, so what one
        // cycle looked up serves the next. Whoever evaluates beside finds none and begins anew.
        self.caches = file.caches.lock().map(|mut caches| std::mem::take(&mut *caches)).unwrap_or_default();
        self.file = Some(file);
    }

    /// Keeps what was looked up for the next pass over the file.
    fn leave(&mut self) {
        if let Some(mut kept) = self.file.take().and_then(|file| file.caches.lock().ok()) {
            *kept = std::mem::take(&mut self.caches);
            kept.rewind_fn_resolution_caches(1);
        }
    }

    /// After a panic: what the engine was doing is lost, and nothing of it is kept.
    pub(super) fn abandon(mut self) {
        self.file = None;
    }

    pub(super) fn value(&mut self, expression: &Expr) -> Result<Dynamic, Box<EvalAltResult>> {
        let mut context = EvalContext::new(self.engine, &mut self.global, &mut self.caches, &mut self.scope, None);
        context.eval_expression_tree(&Expression::from(expression))
    }
}
