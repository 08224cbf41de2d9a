//! Large JSON values, kept outside and named by a reference with their digest.

use std::time::Duration;

use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::error::Error;
use super::stores::{Stores, key_of};

/// Bytes of JSON from which a value is kept outside: a row stays small enough to be read with hundreds of others.
pub const LARGE: usize = 256 * 1024;

/// Bytes that are read back into memory at most.
const LARGEST: u64 = 64 << 20;

/// A back end that has not given or taken a whole value by then is taken for silent. By the machine's time, as its
/// servers live by it.
const PATIENCE: Duration = Duration::from_secs(60);

/// What stands for a value in its place, as `{"$storage": {…}}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reference {
    pub backend: String,
    pub key: String,
    /// Bytes.
    pub size: u64,
    /// Of the bytes, in hexadecimal.
    pub sha256: String,
}

/// Whether a value would be taken for a reference. What comes from outside must not be one: it would read whatever it
/// names.
pub fn is_reference(value: &Value) -> bool {
    value.as_object().is_some_and(|fields| fields.len() == 1 && fields.contains_key("$storage"))
}

impl Stores {
    /// The value itself, or, where it is large, a reference to it. Its key is `<prefix>/<sha256>.json`, so that doing it
    /// again changes nothing. Never inside a transaction.
    pub async fn put_json_if_large(&self, backend: Option<&str>, prefix: &str, value: Value) -> Result<Value, Error> {
        let bytes = value.to_string().into_bytes();
        if bytes.len() < LARGE {
            return Ok(value);
        }
        let store = self.get(backend)?;
        let sha256 = digest(&bytes);
        let key = key_of(&format!("{prefix}/{sha256}.json"))?;
        let size = bytes.len() as u64;
        let put = tokio::time::timeout(PATIENCE, store.put(&key, bytes.into()));
        put.await.map_err(|_| store.silent())??;
        let reference = Reference { backend: store.id().to_owned(), key: key.to_string(), size, sha256 };
        Ok(serde_json::json!({ "$storage": reference }))
    }

    /// How many bytes lie where a reference points; None where nothing does.
    pub async fn size_of(&self, reference: &Reference) -> Result<Option<u64>, Error> {
        let store = self.get(Some(&reference.backend))?;
        match tokio::time::timeout(PATIENCE, store.head(&key_of(&reference.key)?)).await {
            Err(_) => Err(store.silent()),
            Ok(Ok(meta)) => Ok(Some(meta.size)),
            Ok(Err(Error::NotFound { .. })) => Ok(None),
            Ok(Err(cause)) => Err(cause),
        }
    }

    /// The value behind a reference, checked against its size and digest; every other value is given back as it is.
    pub async fn resolve(&self, value: Value) -> Result<Value, Error> {
        if !is_reference(&value) {
            return Ok(value);
        }
        let reference: Reference = serde_json::from_value(value["$storage"].clone())
            .map_err(|_| Error::BadReference("it takes backend, key, size and sha256"))?;
        if reference.size > LARGEST {
            return Err(Error::BadReference("its size is beyond 64 MiB"));
        }
        let store = self.get(Some(&reference.backend))?;
        let read = tokio::time::timeout(PATIENCE, self.read_whole(&reference));
        let bytes = read.await.map_err(|_| store.silent())??;
        serde_json::from_slice(&bytes).map_err(|_| Error::BadReference("what it names is not JSON"))
    }

    async fn read_whole(&self, reference: &Reference) -> Result<Vec<u8>, Error> {
        let changed = |why| Error::Changed { backend: reference.backend.clone(), key: reference.key.clone(), why };
        let store = self.get(Some(&reference.backend))?;
        let (_, mut pieces) = store.read(&key_of(&reference.key)?, None).await?;
        let mut bytes = Vec::new();
        while let Some(piece) = pieces.next().await {
            bytes.extend_from_slice(&piece?);
            if bytes.len() as u64 > reference.size {
                return Err(changed("it is longer"));
            }
        }
        if (bytes.len() as u64) < reference.size {
            return Err(changed("it is shorter"));
        }
        if digest(&bytes) != reference.sha256 {
            return Err(changed("its digest is another"));
        }
        Ok(bytes)
    }
}

fn digest(bytes: &[u8]) -> String {
    use std::fmt::Write;
    Sha256::digest(bytes).iter().fold(String::with_capacity(64), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
