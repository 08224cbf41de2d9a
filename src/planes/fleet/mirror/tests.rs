use super::*;
use crate::db::Json;
use crate::planes::fleet::model::{JobStatus, RestartPolicy};
use crate::planes::fleet::record::Wanted;

fn epoch() -> Timestamp {
    Timestamp::new(chrono::DateTime::UNIX_EPOCH)
}

fn job(id: i64, revision: i64, status: JobStatus) -> Job {
    Job {
        id,
        template_id: None,
        config: Json(Value::Null),
        requires: Json(serde_json::Map::new()),
        prefers: Json(Vec::new()),
        group_name: None,
        priority: 0,
        restart_policy: RestartPolicy::Never,
        idempotency_key: None,
        status,
        reason: None,
        wanted: Wanted::Run,
        agent_id: None,
        avoid: Json(Vec::new()),
        lease: 1,
        due_at: None,
        killed: false,
        offers: 0,
        restarts: 0,
        metadata: Json(serde_json::Map::new()),
        progress: None,
        progressed_at: None,
        error: None,
        exit_code: None,
        created_at: epoch(),
        updated_at: epoch(),
        assigned_at: None,
        started_at: None,
        ended_at: status.is_final().then(epoch),
        version: 1,
        revision,
    }
}

fn agent(version: i64, revision: i64, state: AgentState) -> Agent {
    Agent { state, connection: 1, version, revision, ..Agent::unknown("studio", epoch()) }
}

fn told(agents: Vec<Agent>, jobs: Vec<Job>) -> Changes {
    let numbers = agents.iter().map(|agent| agent.revision).chain(jobs.iter().map(|job| job.revision));
    Changes { head: numbers.max().unwrap_or_default(), agents, jobs }
}

#[test]
fn the_end_of_a_job_is_told_however_old_the_job_is() {
    let mirror = Mirror::default();
    let wanted = Filter::new(&Subscribe::default()).expect("a filter");
    mirror.take(told(vec![], vec![]));
    let newer = (2..=feed::ENDED + 1).map(|id| job(id, id, JobStatus::Stopped));
    mirror.take(told(vec![], std::iter::once(job(1, 1, JobStatus::Running)).chain(newer).collect()));
    let head = feed::ENDED + 1;
    mirror.take(told(vec![], vec![job(1, head + 1, JobStatus::Stopped)]));
    assert_eq!(mirror.page(head, &wanted, 10).jobs, 1, "its watchers hear of it");
    // What ended first is gone for it; who has not heard of that end begins anew.
    assert!(!mirror.read().jobs.contains_key(&2));
    assert!(!mirror.can_resume(1) && mirror.can_resume(2));
    // What is said of a job after its end moves it back, and leaves no second entry.
    mirror.take(told(vec![], vec![job(1, head + 2, JobStatus::Stopped)]));
    assert_eq!(mirror.read().ended.len() as i64, feed::ENDED);
    assert_eq!(mirror.page(head, &wanted, 10).jobs, 1);
}

#[test]
fn an_agent_that_was_forgotten_and_comes_back_is_known_as_it_is_now() {
    let mirror = Mirror::default();
    mirror.take(told(vec![agent(40, 100, AgentState::Offline)], vec![]));
    mirror.take(told(vec![agent(1, 101, AgentState::Idle)], vec![]));
    assert!(mirror.read().agents["studio"].agent.is_open());
    mirror.take(told(vec![agent(41, 100, AgentState::Offline)], vec![]));
    assert!(mirror.read().agents["studio"].agent.is_open(), "what is older changes nothing");
}
