//! The HTTP kit: what every plane's routes are made of. Whatever a request gets wrong is answered as a
//! [`Problem`](crate::problem::Problem) that names the field or parameter at fault.
//!
//! | room | holds |
//! |---|---|
//! | `body` | [`Body`]: a JSON request body |
//! | `params` | [`Params`]: the query string |
//! | `path` | [`Path`]: the variable segments of the path |
//! | `checks` | [`Checks`]: everything that is wrong with a body, at once |
//! | `caller` | who asks, and whether the role suffices |
//! | `page` | [`Limit`], [`Cursor`] and [`Page`]: lists a page at a time |
//! | `place` | [`Place`]: a connection's place among those that may be open |
//! | `idempotency` | `Idempotency-Key`: a repeated request is answered, not done again |

mod body;
mod caller;
mod checks;
mod explain;
pub mod idempotency;
mod page;
mod params;
mod path;
mod place;

pub use body::{Body, too_large};
pub use checks::Checks;
pub use explain::explain;
pub use idempotency::IdempotencyKey;
pub use page::{Cursor, Limit, Page};
pub use params::Params;
pub use path::Path;
pub use place::Place;
