//! `tasks history`: the versions of a task's code.

use clap::Subcommand;
use reqwest::Method;

use super::failure::{Failure, Outcome};
use super::output::{Output, or_dash};
use super::way_in::{Remote, open_database};
use super::{Common, Server};
use crate::planes::queue::{CodeVersion, task, task_history};

/// Versions that are shown, newest first.
const SHOWN: i64 = 100;

#[derive(Debug, Subcommand)]
pub(super) enum Tasks {
    /// The versions of a task's code, newest first: when each was registered, by whom, and its hash.
    #[command(
        after_help = "Examples:\n  showrunner tasks history download\n  showrunner tasks history download --url http://127.0.0.1:8000 --json"
    )]
    History {
        /// The task's id.
        task: String,
        #[command(flatten)]
        server: Server,
    },
}

impl Tasks {
    pub(super) async fn run(self, common: &Common, out: &mut Output) -> Outcome {
        let Self::History { task, server } = self;
        let versions = match Remote::from(&server)? {
            Some(remote) => {
                let path = format!(
                    "api/tasks/{}/history",
                    form_urlencoded::byte_serialize(task.as_bytes()).collect::<String>()
                );
                remote
                    .ask(Method::GET, &path.replace('+', "%20"), &[("limit", SHOWN.to_string())], Some("items"))
                    .await?
            }
            None => of_database(common, &task).await?,
        };
        show(&versions, out)
    }
}

async fn of_database(common: &Common, id: &str) -> Outcome<Vec<CodeVersion>> {
    let db = open_database(&common.load()?).await?;
    let found = async {
        let known = task(&db, id).await?.is_some();
        let versions = task_history(&db, id, None, SHOWN).await?;
        Ok::<_, crate::db::Error>(known.then_some(versions))
    };
    let found = found.await;
    db.close().await;
    let versions = found?.ok_or_else(|| Failure::failed(format!("no service has registered the task `{id}`")))?;
    Ok(versions.into_iter().map(CodeVersion::from).collect())
}

fn show(versions: &[CodeVersion], out: &mut Output) -> Outcome {
    if out.wants_json() {
        return out.json(&versions);
    }
    let rows = versions.iter().map(|version| {
        let service = or_dash(version.service_id.as_ref());
        let release = or_dash(version.service_version.as_ref());
        vec![
            version.code_version.to_string(),
            version.created_at.to_string(),
            service,
            release,
            version.code_hash.clone(),
        ]
    });
    out.table(&["version", "since", "service", "release", "SHA-256"], rows)
}
