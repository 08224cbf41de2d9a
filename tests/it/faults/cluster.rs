//! A PostgreSQL server that a story may stop and start.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::support::postgres::{REQUIRE_VARIABLE, binaries, is_root};

/// A cluster that a story may stop, break and start again; removed when dropped.
pub struct Cluster {
    binaries: PathBuf,
    folder: tempfile::TempDir,
    port: u16,
}

impl Cluster {
    /// Made and started; `None`, with a line that says so, where PostgreSQL's programs are not installed.
    pub fn start() -> Option<Self> {
        let Some(binaries) = binaries() else {
            assert!(std::env::var_os(REQUIRE_VARIABLE).is_none(), "{REQUIRE_VARIABLE} is set and there is no initdb");
            eprintln!("skipped: no PostgreSQL programs found; install them");
            return None;
        };
        let folder = tempfile::Builder::new().prefix("showrunner-cluster-").tempdir().ok()?;
        let port = std::net::TcpListener::bind("127.0.0.1:0").ok()?.local_addr().ok()?.port();
        if is_root() {
            Command::new("chown").arg("postgres:postgres").arg(folder.path()).status().ok()?;
        }
        let cluster = Self { binaries, folder, port };
        let place = cluster.folder.path().display();
        assert!(
            cluster.run("initdb", &format!("-D {place}/data -U postgres -A trust -E UTF8 --locale=C -N")),
            "initdb"
        );
        assert!(cluster.control("start"), "the cluster starts");
        Some(cluster)
    }

    /// `pg_ctl` with an action such as `start`, `stop -m immediate`; waits until it is done.
    pub fn control(&self, action: &str) -> bool {
        let place = self.folder.path().display();
        let options = format!(
            "-o '-p {} -c listen_addresses=127.0.0.1 -c unix_socket_directories={place} -c max_connections=60'",
            self.port
        );
        let options = if action.starts_with("stop") { String::new() } else { options };
        self.run("pg_ctl", &format!("-D {place}/data -w -t 60 -l {place}/log {options} {action}"))
    }

    fn run(&self, program: &str, arguments: &str) -> bool {
        let as_other = if is_root() { "setpriv --reuid=postgres --regid=postgres --clear-groups" } else { "" };
        let bin = self.binaries.display();
        let line =
            format!("cd / && {as_other} {bin}/{program} {arguments} >>{}/said 2>&1", self.folder.path().display());
        Command::new("sh").arg("-c").arg(line).stdin(Stdio::null()).status().is_ok_and(|status| status.success())
    }

    /// Its database.
    pub fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.control("stop -m immediate");
    }
}
