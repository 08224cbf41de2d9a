//! Who asks, and whether the role suffices.

use axum::extract::FromRequestParts;
use axum::http::StatusCode;
use axum::http::request::Parts;

use crate::actor::{Caller, Role};
use crate::problem::Problem;

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let caller = parts.extensions.get::<Self>().cloned();
        caller.ok_or_else(|| Problem::internal("a route that needs a caller stands outside the authentication layer"))
    }
}

impl Caller {
    /// 403 unless the caller may do what `role` may.
    pub fn require(&self, role: Role) -> Result<(), Problem> {
        if self.role >= role {
            return Ok(());
        }
        let needed = match role {
            Role::Viewer => "viewer",
            Role::Operator => "operator",
            Role::Admin => "admin",
        };
        Err(Problem::new(
            StatusCode::FORBIDDEN,
            "forbidden",
            format!("The token `{}` may not do this; it takes one with the role {needed}.", self.name),
        ))
    }
}
