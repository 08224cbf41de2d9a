//! Where large values are kept: several back ends at once, from one JSON array.

use std::collections::BTreeSet;
use std::path::PathBuf;

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::fault::Fault;
use super::shape::did_you_mean;
use super::{load, redacted};

/// Where large values are kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Storage {
    /// The back ends as a JSON array. With none there is one, `local`, in `folder`.
    #[serde(serialize_with = "redacted")]
    pub backends: SecretString,
    /// The id of the default back end, over `isDefault`.
    pub default_backend: String,
    /// The folder of the back end `local`. Default: in the user's data folder.
    pub folder: PathBuf,
}

impl Default for Storage {
    fn default() -> Self {
        Self {
            backends: SecretString::default(),
            default_backend: String::new(),
            folder: load::data_folder().join("storage"),
        }
    }
}

/// One back end.
#[derive(Debug, Clone)]
pub struct Backend {
    /// What requests and references call it.
    pub id: String,
    pub place: Place,
}

/// Where a back end is and how to come in. Secrets are never shown.
#[derive(Debug, Clone)]
pub enum Place {
    /// A folder of this machine (`local`).
    Folder(PathBuf),
    /// `aws-s3`, `minio`, or `s3` for others that speak S3.
    S3 {
        provider: &'static str,
        /// None for AWS itself.
        endpoint: Option<String>,
        bucket: String,
        region: String,
        access_key: String,
        secret_key: SecretString,
    },
    /// Google Cloud Storage (`gcs`).
    Gcs { endpoint: Option<String>, bucket: String, project: String, client_email: String, private_key: SecretString },
}

/// The back ends that were set, the default first.
#[derive(Debug, Clone)]
pub struct Backends {
    pub default_id: String,
    pub all: Vec<Backend>,
}

const PROVIDERS: [&str; 5] = ["aws-s3", "gcs", "local", "minio", "s3"];
/// More than anybody has; each holds connections.
const MOST_BACKENDS: usize = 20;
const KEY: &str = "storage.backends";

impl Storage {
    /// Reads the array; every fault is named, and none shows a value that could be a secret.
    pub fn parse(&self) -> Result<Backends, Vec<Fault>> {
        let text = self.backends.expose_secret().trim();
        let items = match serde_json::from_str::<Value>(if text.is_empty() { "[]" } else { text }) {
            Ok(Value::Array(items)) if items.len() <= MOST_BACKENDS => items,
            Ok(Value::Array(_)) => {
                return Err(vec![Fault::at(KEY, format!("takes at most {MOST_BACKENDS} back ends"))]);
            }
            Ok(_) => return Err(vec![Fault::at(KEY, "takes a JSON array of back ends")]),
            Err(cause) => {
                let at = format!("line {}, column {}", cause.line(), cause.column());
                return Err(vec![Fault::at(KEY, format!("is not JSON ({at}); an array of back ends is taken"))]);
            }
        };
        let mut faults = Vec::new();
        let mut all = Vec::new();
        let (mut ids, mut defaults) = (BTreeSet::new(), Vec::new());
        for (index, item) in items.into_iter().enumerate() {
            let mut reading = Reading { path: format!("{KEY}.{index}"), faults: &mut faults };
            let Some((backend, is_default)) = reading.backend(item) else { continue };
            if !ids.insert(backend.id.clone()) {
                reading.fault("id", format!("`{}` is taken by another back end", backend.id));
            }
            if is_default {
                defaults.push(backend.id.clone());
            }
            all.push(backend);
        }
        if all.is_empty() && faults.is_empty() {
            all.push(Backend { id: "local".to_owned(), place: Place::Folder(self.folder.clone()) });
        }
        if defaults.len() > 1 {
            faults.push(Fault::at(KEY, format!("`isDefault` stands at {}; one is taken", defaults.join(", "))));
        }
        let chosen = Some(self.default_backend.trim()).filter(|id| !id.is_empty()).map(str::to_owned);
        if let Some(id) =
            chosen.as_ref().filter(|id| faults.is_empty() && !all.iter().any(|backend| backend.id == **id))
        {
            let hint = did_you_mean(id, all.iter().map(|backend| backend.id.as_str()));
            let message = format!("there is no back end `{}`{hint}", id.escape_debug());
            faults.push(Fault::at("storage.default_backend", message));
        }
        let default_id = chosen.or_else(|| defaults.pop()).or_else(|| all.first().map(|backend| backend.id.clone()));
        match default_id {
            Some(default_id) if faults.is_empty() => Ok(Backends { default_id, all }),
            _ => Err(faults),
        }
    }
}

/// One back end while it is read.
struct Reading<'a> {
    path: String,
    faults: &'a mut Vec<Fault>,
}

impl Reading<'_> {
    fn fault(&mut self, field: &str, message: impl Into<String>) {
        self.faults.push(Fault::at(format!("{}.{field}", self.path), message));
    }

    fn backend(&mut self, item: Value) -> Option<(Backend, bool)> {
        let Value::Object(fields) = item else {
            self.faults.push(Fault::at(self.path.clone(), "takes an object with id, provider, bucket and credentials"));
            return None;
        };
        let before = self.faults.len();
        let provider = self.text(&fields, "provider").filter(|provider| {
            let known = PROVIDERS.contains(&provider.as_str());
            if !known {
                let hint = did_you_mean(provider, PROVIDERS);
                self.fault("provider", format!("is none of {}{hint}", PROVIDERS.join(", ")));
            }
            known
        })?;
        let known: &[&str] = match provider.as_str() {
            "local" => &["id", "provider", "path", "isDefault"],
            _ => &["id", "provider", "endpoint", "bucket", "region", "credentials", "isDefault"],
        };
        self.only(&fields, known);
        let id = self.text(&fields, "id").filter(|id| {
            let taken =
                (1..=100).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b));
            if !taken {
                self.fault("id", "takes 1 to 100 letters, digits, _ and -");
            }
            taken
        });
        let is_default = match fields.get("isDefault") {
            None | Some(Value::Null) => false,
            Some(Value::Bool(is_default)) => *is_default,
            Some(_) => {
                self.fault("isDefault", "takes true or false");
                false
            }
        };
        let place = match provider.as_str() {
            "local" => self.text(&fields, "path").map(|path| Place::Folder(path.into())),
            "gcs" => self.gcs(&fields),
            "aws-s3" => self.s3("aws-s3", &fields),
            "minio" => self.s3("minio", &fields),
            _ => self.s3("s3", &fields),
        };
        if self.faults.len() > before {
            return None;
        }
        Some((Backend { id: id?, place: place? }, is_default))
    }

    fn s3(&mut self, provider: &'static str, fields: &Map<String, Value>) -> Option<Place> {
        let endpoint = self.endpoint(fields, provider == "aws-s3");
        if endpoint.is_none() && provider != "aws-s3" && !fields.contains_key("endpoint") {
            self.fault("endpoint", "is missing; a URL such as http://localhost:9000 is taken");
        }
        // AWS's global address knows only one region's buckets; the region's own is made from its name.
        let endpoint = endpoint.filter(|url| !url.trim_end_matches('/').ends_with("//s3.amazonaws.com"));
        let region = match fields.get("region") {
            None | Some(Value::Null) if provider != "aws-s3" => Some("us-east-1".to_owned()),
            _ => self.text(fields, "region"),
        };
        let bucket = self.bucket(fields);
        let names = if provider == "minio" { ["accessKey", "secretKey"] } else { ["accessKeyId", "secretAccessKey"] };
        let [access_key, secret_key] = self.credentials(fields, names);
        Some(Place::S3 {
            provider,
            endpoint,
            bucket: bucket?,
            region: region?,
            access_key: access_key?,
            secret_key: secret_key?.into(),
        })
    }

    fn gcs(&mut self, fields: &Map<String, Value>) -> Option<Place> {
        let endpoint = self.endpoint(fields, true).filter(|url| !url.contains("//storage.googleapis.com"));
        let bucket = self.bucket(fields);
        let [project, client_email, private_key] = self.credentials(fields, ["projectId", "clientEmail", "privateKey"]);
        let private_key = private_key.filter(|key| {
            let is_pem = key.contains("-----BEGIN") && key.contains("PRIVATE KEY-----");
            if !is_pem {
                self.fault(
                    "credentials.privateKey",
                    "takes a private key in PEM, as the service account's file has it",
                );
            }
            is_pem
        });
        Some(Place::Gcs {
            endpoint,
            bucket: bucket?,
            project: project?,
            client_email: client_email?,
            private_key: private_key?.into(),
        })
    }

    fn credentials<const N: usize>(&mut self, fields: &Map<String, Value>, names: [&str; N]) -> [Option<String>; N] {
        let Some(Value::Object(credentials)) = fields.get("credentials") else {
            self.fault("credentials", format!("is missing; an object with {} is taken", names.join(" and ")));
            return names.map(|_| None);
        };
        let mut inside = Reading { path: format!("{}.credentials", self.path), faults: &mut *self.faults };
        inside.only(credentials, &names);
        names.map(|name| inside.text(credentials, name))
    }

    fn bucket(&mut self, fields: &Map<String, Value>) -> Option<String> {
        self.text(fields, "bucket").filter(|bucket| {
            let letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_".contains(&byte);
            let taken = (3..=222).contains(&bucket.len()) && bucket.bytes().all(letter) && !bucket.contains("..");
            if !taken {
                self.fault("bucket", "takes 3 or more small letters, digits, dots, _ and -");
            }
            taken
        })
    }

    fn endpoint(&mut self, fields: &Map<String, Value>, optional: bool) -> Option<String> {
        if optional && matches!(fields.get("endpoint"), None | Some(Value::Null)) {
            return None;
        }
        fields.get("endpoint")?;
        self.text(fields, "endpoint").filter(|endpoint| {
            let good = reqwest::Url::parse(endpoint).is_ok_and(|url| {
                matches!(url.scheme(), "http" | "https")
                    && url.has_host()
                    && url.username().is_empty()
                    && url.query().is_none()
            });
            if !good {
                self.fault("endpoint", "takes a URL such as https://s3.example, without a user or parameters");
            }
            good
        })
    }

    fn text(&mut self, fields: &Map<String, Value>, name: &str) -> Option<String> {
        match fields.get(name) {
            Some(Value::String(text)) if !text.trim().is_empty() && !text.contains('\0') => {
                Some(text.trim().to_owned())
            }
            None | Some(Value::Null) => {
                self.fault(name, "is missing");
                None
            }
            Some(_) => {
                self.fault(name, "takes a text that is not empty");
                None
            }
        }
    }

    fn only(&mut self, fields: &Map<String, Value>, known: &[&str]) {
        for name in fields.keys().filter(|name| !known.contains(&name.as_str())) {
            let hint = did_you_mean(name, known.iter().copied());
            self.fault(name, format!("there is no such key{hint}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(backends: &str, default_backend: &str) -> Result<Backends, String> {
        let storage =
            Storage { backends: backends.into(), default_backend: default_backend.to_owned(), ..Storage::default() };
        storage.parse().map_err(|faults| faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
    }

    /// As other documents show it.
    const THREE: &str = r#"[
      {"id":"primary-s3","provider":"aws-s3","endpoint":"https://s3.amazonaws.com","bucket":"pipeweave-prod","region":"us-east-1",
       "credentials":{"accessKeyId":"AKIDEXAMPLE","secretAccessKey":"hush-hush-1"},"isDefault":true},
      {"id":"gcs-backup","provider":"gcs","endpoint":"https://storage.googleapis.com","bucket":"pipeweave-backup",
       "credentials":{"projectId":"my-project","clientEmail":"a@b.example","privateKey":"-----BEGIN PRIVATE KEY-----\nhush-hush-2\n-----END PRIVATE KEY-----\n"}},
      {"id":"local-minio","provider":"minio","endpoint":"http://localhost:9000","bucket":"pipeweave-dev",
       "credentials":{"accessKey":"minioadmin","secretKey":"hush-hush-3"}}
    ]"#;

    #[test]
    fn the_documented_array_is_taken_and_its_secrets_are_never_shown() {
        let backends = read(THREE, "").expect("taken");
        assert_eq!(backends.default_id, "primary-s3");
        assert_eq!(backends.all.len(), 3);
        assert!(!format!("{backends:?}").contains("hush"), "{backends:?}");
        assert_eq!(read(THREE, "gcs-backup").expect("taken").default_id, "gcs-backup");
        let storage = Storage { backends: THREE.into(), ..Storage::default() };
        let shown = format!("{storage:?}{}", serde_json::to_string(&storage).expect("JSON"));
        assert!(!shown.contains("hush"), "{shown}");
    }

    #[test]
    fn without_any_there_is_one_in_the_data_folder() {
        let backends = read("", "").expect("taken");
        assert!(matches!(&backends.all[..], [Backend { id, place: Place::Folder(_) }] if id == "local"));
    }

    #[test]
    fn each_fault_names_its_key_and_shows_no_secret() {
        let cases = [
            ("{}", "storage.backends: takes a JSON array"),
            ("[{\"id\":", "storage.backends: is not JSON (line 1, column 7)"),
            (r#"[{"id":"a","provider":"s4"}]"#, "storage.backends.0.provider: is none of"),
            (r#"[{"id":"a","provider":"local","path":"x","bukket":"y"}]"#, "0.bukket: there is no such key"),
            (
                r#"[{"id":"a","provider":"minio","bucket":"abc","credentials":{"accessKey":"k","secretKey":"hush"}}]"#,
                "0.endpoint: is missing",
            ),
            (
                r#"[{"id":"a","provider":"minio","endpoint":"http://u:hush@h","bucket":"abc","credentials":{"accessKey":"k","secretKey":"hush"}}]"#,
                "0.endpoint: takes a URL",
            ),
            (
                r#"[{"id":"a","provider":"aws-s3","bucket":"abc","region":"r","credentials":{"accessKey":"k","secretKey":"hush"}}]"#,
                "0.credentials.secretAccessKey: is missing",
            ),
            (
                r#"[{"id":"a","provider":"gcs","bucket":"abc","credentials":{"projectId":"p","clientEmail":"e","privateKey":"hush"}}]"#,
                "0.credentials.privateKey: takes a private key in PEM",
            ),
            (
                r#"[{"id":"a","provider":"local","path":"x"},{"id":"a","provider":"local","path":"y"}]"#,
                "1.id: `a` is taken",
            ),
            (
                r#"[{"id":"a","provider":"local","path":"x","isDefault":true},{"id":"b","provider":"local","path":"y","isDefault":true}]"#,
                "`isDefault` stands at a, b",
            ),
        ];
        for (text, said) in cases {
            let faults = read(text, "").expect_err(text);
            assert!(faults.contains(said), "{text}: {faults}");
            assert!(!faults.contains("hush"), "{faults}");
        }
        assert!(read(THREE, "gcs-backups").expect_err("unknown").contains("did you mean `gcs-backup`?"));
    }
}
