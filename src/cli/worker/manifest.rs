//! What a worker runs: a manifest in YAML or JSON, and the version of its code.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

/// Files that a command names count as code up to here; a larger one is data or an interpreter, and its length counts.
const LARGEST_CODE: u64 = 8 << 20;

/// A service and its tasks, as its author writes them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    /// The service's id.
    pub(super) service: String,
    pub(super) version: Option<String>,
    /// By the tasks' ids.
    pub(super) tasks: BTreeMap<String, Task>,
    /// Where commands run: the manifest's own folder.
    #[serde(skip)]
    pub(super) folder: PathBuf,
}

/// A task: its command, and how the service is to run it, in the words of `POST /api/register`.
#[derive(Debug, Deserialize)]
pub(super) struct Task {
    /// The program and its arguments; no shell reads them.
    pub(super) command: Vec<String>,
    #[serde(default)]
    pub(super) env: BTreeMap<String, String>,
    #[serde(flatten)]
    settings: Map<String, Value>,
}

impl Manifest {
    /// The error says what to mend, and where.
    pub(super) fn read(file: &Path) -> Result<Self, String> {
        let shown = file.display();
        let text = std::fs::read_to_string(file).map_err(|cause| format!("{shown} cannot be read: {cause}"))?;
        let value: Value = serde_saphyr::from_str(&text).map_err(|cause| format!("{shown}: {cause}"))?;
        let mut manifest: Self = serde_path_to_error::deserialize(value)
            .map_err(|error| format!("{shown}: {}: {}", error.path(), error.inner()))?;
        if manifest.tasks.is_empty() {
            return Err(format!("{shown}: tasks: names none"));
        }
        if let Some((id, _)) = manifest.tasks.iter().find(|(_, task)| task.command.iter().all(String::is_empty)) {
            return Err(format!("{shown}: tasks.{id}.command: takes a program and its arguments, as a list"));
        }
        let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        manifest.folder = folder.canonicalize().map_err(|cause| format!("{}: {cause}", folder.display()))?;
        Ok(manifest)
    }

    /// The body of `POST /api/register`.
    pub(super) fn registration(&self, endpoint: Option<&str>) -> std::io::Result<Value> {
        let mut tasks = Vec::with_capacity(self.tasks.len());
        for (id, task) in &self.tasks {
            let mut body = task.settings.clone();
            body.insert("id".to_owned(), json!(id));
            body.insert("codeHash".to_owned(), json!(self.code_hash(task)?));
            tasks.push(Value::Object(body));
        }
        Ok(json!({ "name": self.service, "version": self.version, "endpoint": endpoint, "tasks": tasks }))
    }

    /// SHA-256 of what the manifest says of running the task, and of every file that its command names.
    fn code_hash(&self, task: &Task) -> std::io::Result<String> {
        let mut hash = Sha256::new();
        hash.update(json!([task.command, task.env]).to_string());
        for argument in &task.command {
            let file = self.folder.join(argument);
            let Some(found) = std::fs::metadata(&file).ok().filter(std::fs::Metadata::is_file) else { continue };
            match found.len() {
                length @ ..=LARGEST_CODE => {
                    hash.update(length.to_be_bytes());
                    hash.update(std::fs::read(&file)?);
                }
                length => hash.update(length.to_be_bytes()),
            }
        }
        Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash_of(folder: &Path, text: &str) -> Value {
        let file = folder.join("worker.yaml");
        std::fs::write(&file, text).expect("a file");
        Manifest::read(&file).expect("good").registration(None).expect("read")["tasks"][0]["codeHash"].clone()
    }

    #[test]
    fn the_code_changes_with_the_command_and_with_the_files_that_it_names() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("render.py"), "one").expect("a file");
        let text = "service: s\ntasks: {render: {command: [python3, render.py], priority: 3}}";
        let first = hash_of(folder.path(), text);
        assert_eq!(first.as_str().map(str::len), Some(64));
        assert_eq!(hash_of(folder.path(), &text.replace("priority: 3", "priority: 4")), first, "a setting is no code");
        assert_ne!(hash_of(folder.path(), &text.replace("python3", "python4")), first);
        std::fs::write(folder.path().join("render.py"), "two").expect("a file");
        assert_ne!(hash_of(folder.path(), text), first);
    }

    #[test]
    fn a_bad_manifest_names_the_place() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("worker.yaml");
        for (text, says) in [
            ("service: s\ntasks: {}", "tasks: names none"),
            ("service: s\ntasks: {a: {command: []}}", "tasks.a.command"),
            ("service: s\ntasks: {a: {command: make}}", "tasks.a.command: "),
            ("service: s\ntask: {}", "unknown field `task`"),
            ("tasks: [", "worker.yaml"),
        ] {
            std::fs::write(&file, text).expect("a file");
            let said = Manifest::read(&file).expect_err(text);
            assert!(said.contains(says), "{text}: {said}");
        }
    }
}
