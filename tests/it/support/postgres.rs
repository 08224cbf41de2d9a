//! A PostgreSQL server for the tests: the one that an environment variable names, else one on this machine that lets
//! us in, else a temporary one from installed binaries, else none, which is said.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use sqlx::{Connection, PgConnection};

/// Names the server to use, e.g. `postgres://user@host/postgres`; the user must be allowed to create databases.
const URL_VARIABLE: &str = "SHOWRUNNER_TEST_POSTGRES_URL";
/// Set where a skipped test is a failure.
pub const REQUIRE_VARIABLE: &str = "SHOWRUNNER_TEST_REQUIRE_POSTGRES";

static SERVER: OnceLock<Option<String>> = OnceLock::new();

/// A fresh, empty database of its own; `None`, with a line that says so, where there is no server.
pub async fn fresh_database() -> Option<String> {
    let server = tokio::task::spawn_blocking(|| SERVER.get_or_init(find_server).clone()).await.expect("a search");
    let Some(server) = server else {
        assert!(
            std::env::var_os(REQUIRE_VARIABLE).is_none(),
            "{REQUIRE_VARIABLE} is set and there is no PostgreSQL: install it, or name a server by {URL_VARIABLE}"
        );
        eprintln!("skipped: no PostgreSQL found; install it, or name a server by {URL_VARIABLE}");
        return None;
    };
    let name = format!("showrunner_test_{}_{}", std::process::id(), next_number());
    let mut connection = PgConnection::connect(&server).await.expect("the server that was found");
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}")))
        .execute(&mut connection)
        .await
        .expect("a database");
    let (place, _) = server.rsplit_once('/').expect("a URL with a database");
    Some(format!("{place}/{name}"))
}

/// Drops a database that `fresh_database` gave, whoever is still connected.
pub async fn drop_database(url: &str) {
    let Some(Some(server)) = SERVER.get() else { return };
    let (_, name) = url.rsplit_once('/').expect("a URL with a database");
    if let Ok(mut connection) = PgConnection::connect(server).await {
        let _ = sqlx::raw_sql(sqlx::AssertSqlSafe(format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)")))
            .execute(&mut connection)
            .await;
    }
}

fn next_number() -> u32 {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

fn find_server() -> Option<String> {
    if let Ok(url) = std::env::var(URL_VARIABLE) {
        return Some(url);
    }
    let local = "postgres://postgres@127.0.0.1:5432/postgres".to_owned();
    if lets_us_in(&local) {
        return Some(local);
    }
    start_temporary(&binaries()?)
}

fn lets_us_in(url: &str) -> bool {
    let url = url.to_owned();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let connect = tokio::time::timeout(Duration::from_secs(3), PgConnection::connect(&url));
            matches!(connect.await, Ok(Ok(_)))
        })
    })
    .join()
    .unwrap_or(false)
}

/// The folder with `initdb` and `postgres`: the newest installed one.
pub fn binaries() -> Option<PathBuf> {
    let mut folders: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .map(|versions| versions.flatten().map(|version| version.path().join("bin")).collect())
        .unwrap_or_default();
    folders.sort();
    folders.extend(std::env::var_os("PATH").iter().flat_map(std::env::split_paths));
    folders.into_iter().rev().find(|folder| folder.join("initdb").is_file() && folder.join("postgres").is_file())
}

/// A cluster of our own in a temporary folder, on a free port; a watchdog stops it when this process is gone.
fn start_temporary(binaries: &Path) -> Option<String> {
    let folder = tempfile::Builder::new().prefix("showrunner-postgres-").tempdir().ok()?.keep();
    let port = std::net::TcpListener::bind("127.0.0.1:0").ok()?.local_addr().ok()?.port();
    // The server refuses to run as root; then it runs as the user that its package brings.
    let as_other = if is_root() { "setpriv --reuid=postgres --regid=postgres --clear-groups" } else { "" };
    if is_root() {
        Command::new("chown").arg("postgres:postgres").arg(&folder).status().ok()?;
    }
    let (bin, dir) = (binaries.display(), folder.display());
    let made = Command::new("sh")
        .arg("-c")
        .arg(format!("{as_other} {bin}/initdb -D {dir}/data -U postgres -A trust -E UTF8 --locale=C >{dir}/log 2>&1"))
        .status()
        .ok()?;
    if !made.success() {
        return None;
    }
    let parent = std::process::id();
    let watchdog = format!(
        "{as_other} {bin}/postgres -D {dir}/data -p {port} -c listen_addresses=127.0.0.1 \
         -c unix_socket_directories={dir} >>{dir}/log 2>&1 & server=$!; \
         while kill -0 {parent} 2>/dev/null; do sleep 1; done; kill -INT $server; wait $server; rm -rf {dir}"
    );
    Command::new("sh")
        .arg("-c")
        .arg(watchdog)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let url = format!("postgres://postgres@127.0.0.1:{port}/postgres");
    let came_up = (0..60).any(|_| {
        let up = lets_us_in(&url);
        if !up {
            std::thread::sleep(Duration::from_millis(250)); // the server gives no other sign
        }
        up
    });
    came_up.then_some(url)
}

/// The server refuses to run as root.
pub fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout.starts_with(b"0\n"))
}
