//! The rules that come with the service.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

/// The file that holds the deductions.
pub const HEALTH: &str = "health.rhai";

/// File names and sources of the built-in rules.
pub const BUILT_IN: [(&str, &str); 7] = [
    ("campaigns.rhai", include_str!("../../../rules/campaigns.rhai")),
    ("clips.rhai", include_str!("../../../rules/clips.rhai")),
    ("fleet.rhai", include_str!("../../../rules/fleet.rhai")),
    (HEALTH, include_str!("../../../rules/health.rhai")),
    ("pipelines.rhai", include_str!("../../../rules/pipelines.rhai")),
    ("publishing.rhai", include_str!("../../../rules/publishing.rhai")),
    ("queue.rhai", include_str!("../../../rules/queue.rhai")),
];

/// Writes the built-in rules into `folder`, which is made if it is missing, and answers the files.
///
/// # Errors
/// `AlreadyExists` naming the first file that is already there; then nothing is written.
pub fn init(folder: &Path) -> io::Result<Vec<PathBuf>> {
    fs::create_dir_all(folder).map_err(|error| named(folder, &error))?;
    let files: Vec<(PathBuf, &str)> = BUILT_IN.iter().map(|(name, text)| (folder.join(name), *text)).collect();
    if let Some((path, _)) = files.iter().find(|(path, _)| path.symlink_metadata().is_ok()) {
        let message = format!("{} already exists; nothing was written", path.display());
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
    }
    for (path, text) in &files {
        let mut file =
            OpenOptions::new().write(true).create_new(true).open(path).map_err(|error| named(path, &error))?;
        file.write_all(text.as_bytes()).map_err(|error| named(path, &error))?;
    }
    Ok(files.into_iter().map(|(path, _)| path).collect())
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
