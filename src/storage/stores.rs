//! The back ends, opened.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use object_store::aws::AmazonS3Builder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::path::Path as Key;
use object_store::{
    BackoffConfig, ClientOptions, GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt, PutPayload,
    RetryConfig, WriteMultipart,
};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};

use super::error::Error;
use crate::config::{Backend, Place, Storage};

/// A back end that does not take a connection by then, or is silent for so long, does not answer.
const CONNECT: Duration = Duration::from_secs(5);
const SILENCE: Duration = Duration::from_secs(15);

/// Tries of one request, and the time in which they have to be begun.
const RETRIES: usize = 2;
const RETRY_FOR: Duration = Duration::from_secs(10);

/// A copy between back ends holds so many parts of so many bytes in memory; S3 takes none below 5 MiB.
const PART: usize = 8 << 20;
const PARTS_AT_ONCE: usize = 2;

/// Bytes of a key; every provider takes as many.
const LONGEST_KEY: usize = 1024;

/// The back ends by id.
#[derive(Clone)]
pub struct Stores {
    by_id: Arc<BTreeMap<String, Store>>,
    default_id: Arc<str>,
}

impl std::fmt::Debug for Stores {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.by_id.keys()).finish()
    }
}

/// One back end.
#[derive(Clone)]
pub struct Store {
    id: Arc<str>,
    objects: Arc<dyn ObjectStore>,
    place: Arc<Place>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Store").field(&self.id).finish()
    }
}

/// A key from outside: nothing in it can lead out of the back end's place.
pub fn key_of(text: &str) -> Result<Key, Error> {
    let refused = || Error::BadKey(text.chars().take(100).flat_map(char::escape_debug).collect());
    let is_clean = (1..=LONGEST_KEY).contains(&text.len())
        && !text.chars().any(|c| c.is_control() || c == '\\')
        && text.split('/').all(|part| !matches!(part, "" | "." | ".."));
    if is_clean { Key::parse(text).map_err(|_| refused()) } else { Err(refused()) }
}

impl Stores {
    /// Opens every back end; nothing is asked of them yet, but the folders are made. The error says what to mend.
    pub fn open(config: &Storage) -> Result<Self, String> {
        let backends =
            config.parse().map_err(|faults| faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))?;
        let mut by_id = BTreeMap::new();
        for backend in backends.all {
            by_id.insert(backend.id.clone(), Store::open(backend)?);
        }
        Ok(Self { by_id: Arc::new(by_id), default_id: backends.default_id.into() })
    }

    /// The back end of that id, or the default one.
    pub fn get(&self, id: Option<&str>) -> Result<&Store, Error> {
        let id = id.unwrap_or(&self.default_id);
        self.by_id.get(id).ok_or_else(|| Error::NoBackend {
            id: id.chars().take(100).flat_map(char::escape_debug).collect(),
            known: self.by_id.keys().map(|id| format!("`{id}`")).collect::<Vec<_>>().join(", "),
        })
    }

    /// Every back end's id, in order.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.by_id.keys().map(String::as_str)
    }
}

fn client() -> ClientOptions {
    // A whole download may take long; a silence in it may not.
    ClientOptions::new().with_connect_timeout(CONNECT).with_read_timeout(SILENCE).with_timeout_disabled()
}

fn retry() -> RetryConfig {
    let backoff = BackoffConfig { max_backoff: Duration::from_secs(2), ..BackoffConfig::default() };
    RetryConfig { backoff, max_retries: RETRIES, retry_timeout: RETRY_FOR }
}

impl Store {
    fn open(backend: Backend) -> Result<Self, String> {
        let Backend { id, place } = backend;
        let failed = |cause: &dyn std::fmt::Display| {
            format!("storage back end `{id}` cannot be opened: {}", hide(&place, &cause.to_string()))
        };
        let objects: Arc<dyn ObjectStore> = match &place {
            Place::Folder(folder) => {
                std::fs::create_dir_all(folder)
                    .map_err(|cause| failed(&format_args!("{}: {cause}", folder.display())))?;
                let files = LocalFileSystem::new_with_prefix(folder).map_err(|cause| failed(&cause))?;
                Arc::new(files.with_automatic_cleanup(true))
            }
            Place::S3 { endpoint, bucket, region, access_key, secret_key, .. } => {
                let builder = AmazonS3Builder::new()
                    .with_bucket_name(bucket)
                    .with_region(region)
                    .with_access_key_id(access_key)
                    .with_secret_access_key(secret_key.expose_secret())
                    .with_client_options(client())
                    .with_retry(retry());
                let builder = match endpoint {
                    Some(url) => {
                        let client = client().with_allow_http(url.starts_with("http://"));
                        builder.with_endpoint(url.trim_end_matches('/')).with_client_options(client)
                    }
                    None => builder,
                };
                Arc::new(builder.build().map_err(|cause| failed(&cause))?)
            }
            Place::Gcs { endpoint, bucket, client_email, private_key, .. } => {
                let account = json!({
                    "private_key": private_key.expose_secret(),
                    "private_key_id": "",
                    "client_email": client_email,
                    "gcs_base_url": endpoint,
                });
                let client = client().with_allow_http(endpoint.as_ref().is_some_and(|url| url.starts_with("http://")));
                let builder = GoogleCloudStorageBuilder::new()
                    .with_bucket_name(bucket)
                    .with_service_account_key(account.to_string())
                    .with_client_options(client)
                    .with_retry(retry());
                Arc::new(builder.build().map_err(|cause| failed(&cause))?)
            }
        };
        Ok(Self { id: id.into(), objects, place: Arc::new(place) })
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    /// What a worker needs to come in by itself, as the configuration writes it. It leaves the process only in a
    /// token that is encrypted.
    pub(super) fn for_workers(&self) -> Value {
        match &*self.place {
            Place::Folder(path) => json!({ "provider": "local", "path": path }),
            Place::S3 { provider, endpoint, bucket, region, access_key, secret_key } => {
                let secret = secret_key.expose_secret();
                let credentials = match *provider {
                    "minio" => json!({ "accessKey": access_key, "secretKey": secret }),
                    _ => json!({ "accessKeyId": access_key, "secretAccessKey": secret }),
                };
                json!({ "provider": provider, "endpoint": endpoint, "bucket": bucket, "region": region, "credentials": credentials })
            }
            Place::Gcs { endpoint, bucket, project, client_email, private_key } => {
                let private_key = private_key.expose_secret();
                let credentials =
                    json!({ "projectId": project, "clientEmail": client_email, "privateKey": private_key });
                json!({ "provider": "gcs", "endpoint": endpoint, "bucket": bucket, "credentials": credentials })
            }
        }
    }

    /// Size, age and tag of what is at `key`.
    pub async fn head(&self, key: &Key) -> Result<ObjectMeta, Error> {
        self.objects.head(key).await.map_err(|cause| self.error(key, cause))
    }

    /// What is at `key`, or the `range` of it, a piece at a time, with what [`Store::head`] tells.
    pub async fn read(
        &self,
        key: &Key,
        range: Option<std::ops::Range<u64>>,
    ) -> Result<(ObjectMeta, BoxStream<'static, Result<Bytes, Error>>), Error> {
        let options = GetOptions { range: range.map(GetRange::Bounded), ..GetOptions::default() };
        let got = self.objects.get_opts(key, options).await.map_err(|cause| self.error(key, cause))?;
        let meta = got.meta.clone();
        let (store, key) = (self.clone(), key.clone());
        let pieces = got.into_stream().map(move |piece| piece.map_err(|cause| store.error(&key, cause)));
        Ok((meta, pieces.boxed()))
    }

    /// Puts `bytes` at `key`, in place of what is there.
    pub async fn put(&self, key: &Key, bytes: Bytes) -> Result<(), Error> {
        let put = self.objects.put(key, PutPayload::from(bytes)).await;
        put.map(drop).map_err(|cause| self.error(key, cause))
    }

    /// Copies within the back end.
    pub async fn copy(&self, from: &Key, to: &Key) -> Result<(), Error> {
        self.objects.copy(from, to).await.map_err(|cause| self.error(from, cause))
    }

    /// Copies to another back end a piece at a time, or within this one; returns how many bytes. Whoever reads the
    /// target meanwhile finds what was there before.
    pub async fn copy_to(&self, from: &Key, target: &Self, to: &Key) -> Result<u64, Error> {
        if self.id == target.id {
            let size = self.head(from).await?.size;
            if from != to {
                self.copy(from, to).await?;
            }
            return Ok(size);
        }
        let (meta, mut pieces) = self.read(from, None).await?;
        let failed = |cause| target.error(to, cause);
        let upload = target.objects.put_multipart(to).await.map_err(failed)?;
        let mut upload = WriteMultipart::new_with_chunk_size(upload, PART);
        let mut size = 0_u64;
        while let Some(piece) = pieces.next().await {
            let piece = match piece {
                Ok(piece) => piece,
                Err(error) => {
                    let _ = upload.abort().await; // what is left of it, the back end tidies up
                    return Err(error);
                }
            };
            size += piece.len() as u64;
            if let Err(cause) = upload.wait_for_capacity(PARTS_AT_ONCE).await {
                let _ = upload.abort().await;
                return Err(failed(cause));
            }
            upload.put(piece);
        }
        if size != meta.size {
            let _ = upload.abort().await;
            return Err(self.silent());
        }
        upload.finish().await.map_err(failed)?;
        Ok(size)
    }

    /// Takes away what is at `key`; where nothing is, nothing happens.
    pub async fn delete(&self, key: &Key) -> Result<(), Error> {
        match self.objects.delete(key).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(cause) => Err(self.error(key, cause)),
        }
    }

    /// Up to `limit` keys below `prefix`.
    pub async fn list(&self, prefix: &Key, limit: usize) -> Result<Vec<ObjectMeta>, Error> {
        let mut found = self.objects.list(Some(prefix)).take(limit);
        let mut keys = Vec::new();
        while let Some(meta) = found.next().await {
            keys.push(meta.map_err(|cause| self.error(prefix, cause))?);
        }
        Ok(keys)
    }

    /// Says which back end and key, logs the cause, and keeps both clean of secrets.
    fn error(&self, key: &Key, cause: object_store::Error) -> Error {
        use object_store::Error as Cause;
        let backend = self.id.to_string();
        if matches!(cause, Cause::NotFound { .. }) {
            return Error::NotFound { backend, key: key.to_string() };
        }
        let text: String = hide(&self.place, &cause.to_string()).chars().take(500).collect();
        tracing::warn!(backend, key = %key, cause = text, "a storage back end failed");
        match cause {
            Cause::PermissionDenied { .. } | Cause::Unauthenticated { .. } => Error::Refused { backend },
            _ => Error::Unavailable { backend },
        }
    }

    pub(super) fn silent(&self) -> Error {
        Error::Unavailable { backend: self.id.to_string() }
    }
}

/// `text` with the place's secrets hidden, should a server have sent them back.
fn hide(place: &Place, text: &str) -> String {
    let secrets: Vec<&SecretString> = match place {
        Place::Folder(_) => Vec::new(),
        Place::S3 { secret_key, .. } => vec![secret_key],
        Place::Gcs { private_key, .. } => vec![private_key],
    };
    secrets.iter().fold(text.to_owned(), |text, secret| text.replace(secret.expose_secret(), "[hidden]"))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use async_trait::async_trait;
    use object_store::memory::InMemory;
    use object_store::{
        CopyOptions, GetResult, ListResult, MultipartUpload, PutMultipartOptions, PutOptions, PutResult, UploadPart,
    };

    use super::*;

    /// Takes no part of an upload, and counts the uploads that are given up.
    #[derive(Debug, Default)]
    struct Full {
        within: InMemory,
        given_up: Arc<AtomicUsize>,
    }

    impl std::fmt::Display for Full {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("full")
        }
    }

    #[async_trait]
    impl ObjectStore for Full {
        async fn put_opts(&self, key: &Key, value: PutPayload, how: PutOptions) -> object_store::Result<PutResult> {
            self.within.put_opts(key, value, how).await
        }
        async fn put_multipart_opts(
            &self,
            _: &Key,
            _: PutMultipartOptions,
        ) -> object_store::Result<Box<dyn MultipartUpload>> {
            Ok(Box::new(FullUpload(self.given_up.clone())))
        }
        async fn get_opts(&self, key: &Key, how: GetOptions) -> object_store::Result<GetResult> {
            self.within.get_opts(key, how).await
        }
        fn delete_stream(
            &self,
            keys: BoxStream<'static, object_store::Result<Key>>,
        ) -> BoxStream<'static, object_store::Result<Key>> {
            self.within.delete_stream(keys)
        }
        fn list(&self, prefix: Option<&Key>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
            self.within.list(prefix)
        }
        async fn list_with_delimiter(&self, prefix: Option<&Key>) -> object_store::Result<ListResult> {
            self.within.list_with_delimiter(prefix).await
        }
        async fn copy_opts(&self, from: &Key, to: &Key, how: CopyOptions) -> object_store::Result<()> {
            self.within.copy_opts(from, to, how).await
        }
    }

    #[derive(Debug)]
    struct FullUpload(Arc<AtomicUsize>);

    fn no_room() -> object_store::Error {
        object_store::Error::Generic { store: "full", source: "no room".into() }
    }

    #[async_trait]
    impl MultipartUpload for FullUpload {
        fn put_part(&mut self, _: PutPayload) -> UploadPart {
            Box::pin(async { Err(no_room()) })
        }
        async fn complete(&mut self) -> object_store::Result<PutResult> {
            Err(no_room())
        }
        async fn abort(&mut self) -> object_store::Result<()> {
            self.0.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }
    }

    #[tokio::test]
    async fn an_upload_that_fails_in_the_middle_is_given_up() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = |id: &str, objects: Arc<dyn ObjectStore>| Store {
            id: id.into(),
            objects,
            place: Arc::new(Place::Folder(folder.path().to_owned())),
        };
        let files = LocalFileSystem::new_with_prefix(folder.path()).expect("a folder");
        let full = Full::default();
        let given_up = full.given_up.clone();
        let (here, there) = (store("here", Arc::new(files)), store("there", Arc::new(full)));
        let key = key_of("clip").expect("a key");
        here.put(&key, Bytes::from(vec![7_u8; (PARTS_AT_ONCE + 1) * PART])).await.expect("put");
        let refused = here.copy_to(&key, &there, &key).await.expect_err("no room");
        assert!(matches!(refused, Error::Unavailable { .. }), "{refused}");
        assert_eq!(given_up.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn no_key_leads_out_of_its_place() {
        let longest = "x".repeat(1024);
        for good in ["a", "runs/12/out put.json", "ä/ö", "...", "a/..b", &longest] {
            assert_eq!(key_of(good).expect(good).as_ref(), good);
        }
        let too_long = "x".repeat(1025);
        for bad in
            ["", "/", "/a", "a/", "a//b", ".", "..", "../a", "a/../../b", "a/.", "a\\..\\b", "a\0b", "a\nb", &too_long]
        {
            assert!(matches!(key_of(bad), Err(Error::BadKey(_))), "{bad:?}");
        }
    }
}
