//! The rules in force, and the folder that they come from: looked at every cycle, read only when it changed.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use arc_swap::ArcSwap;

use super::error::RuleError;
use super::rule_set::{MAX_FILE_BYTES, MAX_FILES, RuleSet, complete, hash};
use crate::control::orchestrator::RulesStatus;

/// What a look at the folder found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refresh {
    /// The same as at the last look, good or bad.
    Unchanged,
    /// A good set, now in force. `previous` equals `hash` when a rejected change was taken back.
    Loaded {
        /// Of the set in force.
        hash: String,
        /// Of the set that it replaces.
        previous: String,
    },
    /// A bad set; the old one stays in force. Told once a change.
    Rejected {
        /// Of the bad set; nothing where it could not be read.
        hash: Option<String>,
        /// What is wrong with it.
        errors: Vec<RuleError>,
    },
}

/// The rules in force. Shared by reference; readers never wait for a reload.
pub struct RuleBook {
    folder: Option<PathBuf>,
    /// Those that rules may name; any, where nobody said.
    platforms: Option<Vec<String>>,
    current: ArcSwap<RuleSet>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    seen: Option<Seen>,
    rejected: Option<(Option<String>, Vec<RuleError>)>,
    /// What the start-up found and nobody was told yet.
    untold: Option<Refresh>,
}

/// A folder's state as far as it can be seen without reading the files.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Files(BTreeMap<String, Stamp>),
    Unreadable(String),
}

/// When and where a file was written. The inode and the change time tell a replaced file from the old one where the
/// modification time was set by hand or is too coarse.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    modified: Option<SystemTime>,
    length: u64,
    identity: (u64, i64, i64),
}

impl RuleBook {
    /// The built-in rules; nothing can change them.
    pub fn built_in() -> Self {
        Self {
            folder: None,
            platforms: None,
            current: ArcSwap::from_pointee(RuleSet::built_in()),
            state: Mutex::default(),
        }
    }

    /// The rules of a folder. If it is bad the built-in rules are in force, and the first refresh tells.
    pub fn folder(path: impl Into<PathBuf>) -> Self {
        Self::open(path.into(), None)
    }

    /// As [`RuleBook::folder`]; a rule that names a platform outside `platforms` makes the folder bad.
    pub fn folder_for(path: impl Into<PathBuf>, platforms: Vec<String>) -> Self {
        Self::open(path.into(), Some(platforms))
    }

    fn open(path: PathBuf, platforms: Option<Vec<String>>) -> Self {
        let book = Self { folder: Some(path), platforms, ..Self::built_in() };
        let found = book.refresh();
        if matches!(found, Refresh::Rejected { .. }) {
            book.state().untold = Some(found);
        }
        book
    }

    /// Puts `set` in force where the folder was bad from the start: rather the last good set than the built-in one.
    pub fn fall_back_to(&self, set: RuleSet) {
        if self.state().rejected.is_some() {
            self.current.store(Arc::new(set));
        }
    }

    /// The set in force.
    pub fn current(&self) -> Arc<RuleSet> {
        self.current.load_full()
    }

    /// Looks whether the folder changed, and if so loads it: as a whole or not at all.
    pub fn refresh(&self) -> Refresh {
        let Some(folder) = &self.folder else { return Refresh::Unchanged };
        let mut state = self.state();
        if let Some(untold) = state.untold.take() {
            return untold;
        }
        // The stamps are older than the texts: a file that changes in between is read again at the next look.
        let seen = look(folder);
        if state.seen.as_ref() == Some(&seen) {
            return Refresh::Unchanged;
        }
        let result = match &seen {
            Seen::Unreadable(message) => Err((None, vec![RuleError::whole(&folder.display().to_string(), message)])),
            Seen::Files(files) => read(folder, files),
        };
        // At the first look the set in force is not the folder's.
        let known = state.seen.replace(seen).is_some();
        let loaded = result.and_then(|sources| {
            let current = self.current.load();
            if *current.sources() == sources {
                return Ok(None);
            }
            let set = RuleSet::load(&sources).and_then(|set| match &self.platforms {
                Some(platforms) => set.for_platforms(platforms.iter().map(String::as_str)),
                None => Ok(set),
            });
            let set = set.and_then(|set| {
                let mut errors = if known { set.emptied_since(&current) } else { Vec::new() };
                if set.rules().is_empty() && errors.is_empty() {
                    errors.push(RuleError::whole(&folder.display().to_string(), "there is no rule in the folder"));
                }
                if errors.is_empty() { Ok(set) } else { Err(errors) }
            });
            set.map(Some).map_err(|errors| (Some(hash(&sources)), errors))
        });
        let previous = self.current.load().hash().to_owned();
        match loaded {
            Ok(set) => {
                let hash = set.as_ref().map_or_else(|| previous.clone(), |set| set.hash().to_owned());
                let was_rejected = state.rejected.take().is_some();
                if let Some(set) = set {
                    self.current.store(Arc::new(set));
                }
                if hash == previous && !was_rejected { Refresh::Unchanged } else { Refresh::Loaded { hash, previous } }
            }
            Err((hash, errors)) => {
                state.rejected = Some((hash.clone(), errors.clone()));
                Refresh::Rejected { hash, errors }
            }
        }
    }

    /// What is in force and what was refused, for status and health pages.
    pub fn status(&self) -> RulesStatus {
        let state = self.state();
        let current = self.current.load();
        let (rejected_hash, rejected_because) = match &state.rejected {
            Some((hash, errors)) => (hash.clone(), errors.iter().map(ToString::to_string).collect()),
            None => (None, Vec::new()),
        };
        RulesStatus {
            hash: current.hash().to_owned(),
            count: current.rules().len(),
            folder: self.folder.as_ref().map(|folder| folder.display().to_string()),
            rejected_hash,
            rejected_because,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in the state is left half-changed by a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The `.rhai` files of a folder with their stamps. Hidden files are editors' and are left out.
fn look(folder: &Path) -> Seen {
    let mut files = BTreeMap::new();
    let listing = fs::read_dir(folder).and_then(|entries| {
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with('.') || !name.ends_with(".rhai") {
                continue;
            }
            // Through links: a mounted configuration map is a folder of links.
            let data = match fs::metadata(entry.path()) {
                Ok(data) => data,
                Err(error) => return Err(std::io::Error::new(error.kind(), format!("{name}: {error}"))),
            };
            if !data.is_file() {
                let words = format!("{name} is no file; take it away, or put a dot before its name");
                return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, words));
            }
            files.insert(name, stamp(&data));
        }
        Ok(())
    });
    match listing {
        Err(error) => Seen::Unreadable(format!("the folder cannot be read: {error}")),
        Ok(()) if files.is_empty() => Seen::Unreadable("the folder holds no .rhai file".to_owned()),
        Ok(()) => Seen::Files(files),
    }
}

fn stamp(data: &fs::Metadata) -> Stamp {
    #[cfg(unix)]
    let identity = {
        use std::os::unix::fs::MetadataExt as _;
        (data.ino(), data.ctime(), data.ctime_nsec())
    };
    #[cfg(not(unix))]
    let identity = (0, 0, 0);
    Stamp { modified: data.modified().ok(), length: data.len(), identity }
}

/// The text of a file that may have changed since it was looked at: become longer, or a pipe, which must not be waited
/// for.
fn read_bounded(path: &Path) -> std::io::Result<String> {
    let mut options = fs::OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt as _;
        options.custom_flags(libc::O_NONBLOCK);
    }
    let file = options.open(path)?;
    let mut text = String::new();
    file.take(MAX_FILE_BYTES as u64 + 1).read_to_string(&mut text)?;
    if text.len() > MAX_FILE_BYTES {
        return Err(std::io::Error::other(format!("it has grown; at most {MAX_FILE_BYTES} bytes are taken")));
    }
    Ok(text)
}

type Unread = (Option<String>, Vec<RuleError>);

/// Reads the files, unless the bounds forbid it.
fn read(folder: &Path, files: &BTreeMap<String, Stamp>) -> Result<BTreeMap<String, String>, Unread> {
    if files.len() > MAX_FILES {
        let message = format!("{} files; at most {MAX_FILES} are taken", files.len());
        return Err((None, vec![RuleError::whole(&folder.display().to_string(), message)]));
    }
    let mut sources = BTreeMap::new();
    let mut errors = Vec::new();
    for (name, stamp) in files {
        if stamp.length > MAX_FILE_BYTES as u64 {
            let message = format!("{} bytes; at most {MAX_FILE_BYTES} are taken", stamp.length);
            errors.push(RuleError::whole(name, message));
            continue;
        }
        match read_bounded(&folder.join(name)) {
            Ok(source) => {
                sources.insert(name.clone(), source);
            }
            Err(error) => errors.push(RuleError::whole(name, format!("cannot be read: {error}"))),
        }
    }
    if errors.is_empty() { Ok(complete(sources)) } else { Err((None, errors)) }
}
