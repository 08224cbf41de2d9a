//! Another implementation of JWE and JWT: the package `jose` under Node.js.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Names the folder with `node_modules`, if it is not `target/test-node`.
const FOLDER_VARIABLE: &str = "SHOWRUNNER_TEST_NODE";
/// Set where a skipped test is a failure.
const REQUIRE_VARIABLE: &str = "SHOWRUNNER_TEST_REQUIRE_NODE";

/// The folder with the modules; none, with a line that says so, where they are not installed.
fn folder() -> Option<PathBuf> {
    let folder = std::env::var_os(FOLDER_VARIABLE)
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-node"), PathBuf::from);
    let runs =
        || Command::new("node").arg("--version").stdout(Stdio::null()).status().is_ok_and(|ended| ended.success());
    if folder.join("node_modules/jose").is_dir() && runs() {
        return Some(folder);
    }
    let how = "npm install --prefix target/test-node jose@5";
    assert!(std::env::var_os(REQUIRE_VARIABLE).is_none(), "{REQUIRE_VARIABLE} is set and there is no `{how}`");
    eprintln!("skipped: no Node.js with jose; install it, then `{how}`");
    None
}

/// Runs a script as a module that may import `jose`, with `input` on its standard input; returns what it prints.
pub fn run(script: &str, input: &str) -> Option<String> {
    let folder = folder()?;
    let mut command = Command::new("node");
    command.args(["--input-type=module", "--eval", script]).current_dir(folder);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("node");
    child.stdin.take().expect("its input").write_all(input.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("its end");
    assert!(output.status.success(), "the script ends well");
    Some(String::from_utf8(output.stdout).expect("text").trim().to_owned())
}
