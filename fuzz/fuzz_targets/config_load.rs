//! Any file and any variable is a configuration or a list of faults. The first byte chooses the way in.
#![no_main]

use std::ffi::OsString;
use std::path::Path;

use libfuzzer_sys::fuzz_target;
use showrunner::config::{Loaded, Overrides};
use showrunner::control::action::ACTION_KINDS;

const KEYS: [&str; 8] = [
    "PORT", "HOST", "SHOWRUNNER_AUTH__TOKENS", "SHOWRUNNER_PUBLISHING__TIME_ZONE", "SHOWRUNNER_PUBLISHING__WEBHOOK__URL",
    "SHOWRUNNER_PUBLISHING__PLATFORMS__X__OPENS", "LOG_LEVEL", "SHOWRUNNER_PUBLISHING__SANDBOX__REFUSE",
];

fuzz_target!(|input: (u8, &str)| {
    let (way, text) = input;
    let folder = std::env::temp_dir().join(format!("showrunner-fuzz-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let (mut overrides, mut variables) = (Overrides::default(), Vec::new());
    match way % 10 {
        file @ 0..2 => {
            let path = folder.join(["showrunner.yaml", "showrunner.toml"][usize::from(file)]);
            std::fs::write(&path, text).expect("a file");
            overrides.file = Some(path);
        }
        key => variables.push((OsString::from(KEYS[usize::from(key - 2)]), OsString::from(text))),
    }
    match Loaded::read(&overrides, variables, Path::new("/nowhere"), &ACTION_KINDS) {
        Ok(loaded) => drop(serde_json::to_string(&loaded.config).expect("it can be shown")),
        Err(error) => assert!(error.faults.iter().all(|fault| !fault.origin.is_empty() && !fault.message.is_empty()), "{error}"),
    }
});
