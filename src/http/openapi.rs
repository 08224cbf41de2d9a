//! The OpenAPI document, made from the routes themselves, and the page to try it.

use std::sync::Arc;

use axum::http::{HeaderValue, header};
use axum::routing::get;
use axum::{Json, Router};
use tower_http::set_header::SetResponseHeaderLayer;
use utoipa::openapi::path::{Operation, ParameterIn};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{Content, OpenApi, Ref, RefOr, ResponseBuilder};
use utoipa::{OpenApi as _, ToSchema};
use utoipa_swagger_ui::{Config, SwaggerUi};

use super::AppState;
use crate::problem::{FieldError, Problem};
use crate::web::{IdempotencyKey, Limit};

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Showrunner",
        description = "Runs a media platform by itself: looks at everything, decides by rules, acts, and writes down \
            what it saw, what it did and why. Errors are `application/problem+json`."
    ),
    components(schemas(Problem, FieldError, Limit, IdempotencyKey)),
    tags(
        (name = "loop", description = "The loop: look, run once, switch on and off"),
        (name = "record", description = "What was done and why"),
        (name = "queue", description = "Tasks: enqueue them, watch them, and what ran out of tries"),
        (name = "workers", description = "For programs that run tasks"),
        (name = "fleet", description = "Streams on agents, and who watches them"),
        (name = "storage", description = "Large values, wherever they are kept"),
        (name = "probes", description = "For whoever watches the service"),
    )
)]
struct Base;

/// The document before any route.
pub fn base() -> OpenApi {
    Base::openapi()
}

/// Adds what is true of every route: the token, and the problems that it may answer.
pub fn complete(mut document: OpenApi) -> OpenApi {
    let token = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some("One of `auth.tokens`.")).build();
    let components = document.components.get_or_insert_default();
    components.add_security_scheme("bearer", SecurityScheme::Http(token));
    // axum's word for "all that follows" is not OpenAPI's, which has none.
    let paths = std::mem::take(&mut document.paths.paths);
    document.paths.paths = paths.into_iter().map(|(path, item)| (path.replace("{*", "{"), item)).collect();
    for item in document.paths.paths.values_mut() {
        complete_operation(item.get.as_mut(), false);
        for operation in [&mut item.post, &mut item.put, &mut item.patch, &mut item.delete] {
            complete_operation(operation.as_mut(), true);
        }
    }
    document
}

fn complete_operation(operation: Option<&mut Operation>, changes: bool) {
    let Some(operation) = operation else { return };
    // `security(())` on a route says that it needs no token.
    let is_open = operation.security.is_some();
    if !is_open {
        operation.security = Some(vec![SecurityRequirement::new("bearer", Vec::<String>::new())]);
    }
    let parameters = operation.parameters.as_deref().unwrap_or_default();
    let in_path = parameters
        .iter()
        .any(|parameter| matches!(parameter, RefOr::T(parameter) if parameter.parameter_in == ParameterIn::Path));
    let has_body = operation.request_body.is_some();
    let described = [
        (!is_open, "401", "The token is missing or not known"),
        (true, "403", "The role does not suffice, or the request comes from elsewhere while the API is open"),
        (in_path, "404", "There is nothing of that id"),
        (true, "400", "The request is not well formed"),
        (has_body, "408", "The body did not arrive in time"),
        (has_body || changes, "413", "The body is too large"),
        (has_body, "415", "The body is of another content type"),
        (has_body || !parameters.is_empty(), "422", "A field or parameter was refused; `errors` names it"),
        (true, "429", "Too many requests from this address; `Retry-After` says when to try again"),
        (true, "500", "The service's own fault"),
        (true, "503", "Not available now; `Retry-After` says when to try again"),
        (true, "504", "Not done in time"),
    ];
    for (applies, status, description) in described {
        if applies {
            let content = Content::new(Some(RefOr::Ref(Ref::from_schema_name(Problem::name()))));
            let response =
                ResponseBuilder::new().description(description).content("application/problem+json", content).build();
            operation.responses.responses.entry(status.to_owned()).or_insert(RefOr::T(response));
        }
    }
}

/// `/openapi.json`, and `/docs` with the page. Both are open: they say nothing that the source code does not.
pub fn routes(document: OpenApi) -> Router<AppState> {
    let document = Arc::new(document);
    // The page sets styles from its scripts; nothing else of the strict policy has to give.
    let policy = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; object-src 'none'; \
                  base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    let config = Config::from("/openapi.json").validator_url("none");
    let page: Router<AppState> = SwaggerUi::new("/docs").config(config).into();
    let page = page
        .layer(SetResponseHeaderLayer::overriding(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy)));
    Router::new().route("/openapi.json", get(async move || Json(document.as_ref().clone()))).merge(page)
}
