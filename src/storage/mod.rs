//! Where large values are kept: several back ends at once (AWS S3 and what speaks like it, Google Cloud Storage,
//! folders), and how workers are let into them.
//!
//! | room | holds |
//! |---|---|
//! | `error` | why a back end did not do it |
//! | `stores` | the back ends, opened: read, write, list, copy, delete |
//! | `reference` | large JSON values, kept outside and named by a reference with their digest |
//! | `secret` | the key that is shared with workers |
//! | `jwe` | what only its holder can read: a worker's credentials for one run (RFC 7516) |
//! | `jwt` | what only its holder can write: a worker's registration (RFC 7519), each used once |

mod error;
mod jwe;
mod jwt;
mod reference;
mod secret;
mod stores;

pub use error::Error;
pub use jwe::{Grant, Opened};
pub use jwt::{BadToken, Registration};
pub use reference::{LARGE, Reference, is_reference};
pub use secret::SecretKey;
pub use stores::{Store, Stores, key_of};
