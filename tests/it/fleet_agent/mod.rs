//! The reference agent as a process, against an orchestrator that the story plays.

mod clients;
mod desk;
mod media;
mod network;
mod partition;

use std::time::Duration;

use serde_json::json;

use desk::{Agent, Desk, Leash, TOKEN};

/// A command that holds the leash, does what `{then}` says, writes a line, and stays.
const STAYS: &str = r#"sh -c 'exec 3>{leash}; {then=:}; echo began >&3; while :; do sleep 0.05; done'"#;

#[tokio::test]
async fn a_job_runs_in_words_of_its_own_and_its_end_is_told() {
    let (desk, folder) = (Desk::open().await, tempfile::tempdir().expect("a folder"));
    let command =
        r#"sh -c 'echo "$0"; echo "$1 of $2, token $AGENT_TOKEN" >&2; exit "$3"' {text} {jobId} {agentId} {code}"#;
    let more = ["--name", "Studio", "--slots", "3", "--max-resolution", "720p", "--capability", "gpu=true"];
    let _agent = Agent::start(&desk.url(), folder.path(), command, &more);
    let mut call = desk.welcome(0).await;
    assert_eq!(call.hello["agentId"], "agent-1");
    assert_eq!(call.hello["name"], "Studio");
    assert_eq!(call.hello["capabilities"], json!({ "slots": 3, "maxResolution": "720p", "gpu": true }));
    assert_eq!(call.hello["auth"]["token"], TOKEN);
    assert_eq!(call.hello["activeJob"], json!(null));

    call.assign("job-1", 7, json!({ "text": "$(id); `id` && 'rm'", "code": 3 })).await;
    assert_eq!(call.ack("job-1").await, json!({ "jobId": "job-1", "accepted": true, "lease": 7 }));
    call.status("job-1", "STARTING").await;
    let failed = call.status("job-1", "FAILED").await;
    assert_eq!((&failed["exitCode"], &failed["lease"]), (&json!(3), &json!(7)));
    let error = failed["error"].as_str().expect("an error");
    assert!(error.starts_with("sh ended with exit code 3:"), "{error}");
    assert!(error.contains("$(id); `id` && 'rm'"), "a value is one argument, whatever it says: {error}");
    // Which of its two streams was read first is chance.
    assert!(error.lines().any(|line| line.trim() == "job-1 of agent-1, token"), "it is not told the token: {error}");

    call.assign("job-2", 1, json!({ "text": "fine", "code": 0 })).await;
    let stopped = call.status("job-2", "STOPPED").await;
    assert_eq!((&stopped["exitCode"], &stopped["error"]), (&json!(0), &json!(null)));

    call.assign("job-3", 1, json!({ "text": "no code" })).await;
    let ack = call.ack("job-3").await;
    assert_eq!(ack["accepted"], false);
    assert!(ack["reason"].as_str().expect("a reason").contains("no `code`"), "{ack}");
}

#[tokio::test]
async fn a_program_that_is_not_there_fails_its_job() {
    let (desk, folder) = (Desk::open().await, tempfile::tempdir().expect("a folder"));
    let _agent = Agent::start(&desk.url(), folder.path(), "/nowhere/ffmpeg -i {streamUrl}", &[]);
    let mut call = desk.welcome(0).await;
    call.assign("job-1", 1, json!({ "streamUrl": "rtmp://127.0.0.1/live" })).await;
    let failed = call.status("job-1", "FAILED").await;
    assert!(failed["error"].as_str().expect("an error").contains("could not be started"), "{failed}");
    call.say("agent.sing", json!({})).await;
    let complaint = call.hear("error", |_| true).await;
    assert_eq!(complaint["code"], "unknown-type");
}

#[tokio::test]
async fn a_stop_is_term_then_grace_then_kill_for_the_whole_group() {
    let (desk, folder) = (Desk::open().await, tempfile::tempdir().expect("a folder"));
    let _agent = Agent::start(&desk.url(), folder.path(), STAYS, &["--slots", "3"]);
    let mut call = desk.welcome(0).await;

    let mut gentle = Leash::new(folder.path(), "gentle");
    call.assign("job-1", 1, json!({ "leash": gentle.path, "then": "trap \"echo ends >&3; exit 0\" TERM" })).await;
    call.status("job-1", "STARTING").await;
    // A child that it leaves behind, and one that hears nothing, go with the group.
    let mut deaf = Leash::new(folder.path(), "deaf");
    let then = "trap \"\" TERM; (trap \"\" TERM; while :; do sleep 0.05; done) &";
    call.assign("job-2", 1, json!({ "leash": deaf.path, "then": then.replace(" &", " & :") })).await;
    call.status("job-2", "STARTING").await;
    gentle.says("began").await;
    deaf.says("began").await;

    call.say("agent.job.stop", json!({ "jobId": "job-1", "graceMs": 60_000 })).await;
    call.status("job-1", "STOPPING").await;
    let stopped = call.status("job-1", "STOPPED").await;
    assert_eq!(stopped["exitCode"], 0, "it ended by itself, long before the grace was over");
    assert_eq!(gentle.gone().await, ["ends"]);

    call.say("agent.job.stop", json!({ "jobId": "job-2", "graceMs": 300 })).await;
    let stopped = call.status("job-2", "STOPPED").await;
    assert_eq!(stopped["exitCode"], json!(null), "a signal ended it");
    deaf.gone().await;
    assert_eq!(call.beat().await, json!([]));
}

#[tokio::test]
async fn the_same_offer_again_changes_nothing_and_late_words_are_not_obeyed() {
    let (desk, folder) = (Desk::open().await, tempfile::tempdir().expect("a folder"));
    let _agent = Agent::start(&desk.url(), folder.path(), STAYS, &[]);
    let mut call = desk.welcome(0).await;
    let mut leash = Leash::new(folder.path(), "leash");
    for _ in 0..3 {
        call.assign("job-1", 4, json!({ "leash": leash.path })).await;
        assert_eq!(call.ack("job-1").await["accepted"], true);
    }
    call.assign("job-2", 1, json!({ "leash": "/dev/null" })).await;
    let refused = call.ack("job-2").await;
    assert!(refused["reason"].as_str().expect("a reason").contains("no slot is free"), "{refused}");
    call.assign("job-1", 3, json!({ "leash": leash.path })).await;
    assert_eq!(call.ack("job-1").await["accepted"], false, "an older lease");
    // Words about an older lease find nothing to end.
    call.say("agent.job.kill", json!({ "jobId": "job-1", "lease": 3 })).await;
    call.hear("error", |told| told["code"] == "unknown-job").await;
    assert_eq!(call.beat().await, json!([{ "jobId": "job-1", "lease": 4, "status": "RUNNING" }]));

    leash.says("began").await;
    call.say("agent.job.kill", json!({ "jobId": "job-1", "lease": 4 })).await;
    call.status("job-1", "STOPPED").await;
    assert!(leash.gone().await.is_empty(), "one program ran, once");
    call.assign("job-1", 4, json!({ "leash": leash.path })).await;
    assert_eq!(call.status("job-1", "STOPPED").await["lease"], 4, "what is over is not begun again");
    call.say("agent.job.stop", json!({ "jobId": "job-9", "lease": 2 })).await;
    assert_eq!(call.status("job-9", "STOPPED").await["lease"], 2, "what never ran here is not here");
}

#[tokio::test]
async fn jobs_go_on_over_a_reconnect_and_what_ended_meanwhile_is_told() {
    let (desk, folder) = (Desk::open().await, tempfile::tempdir().expect("a folder"));
    let _agent = Agent::start(&desk.url(), folder.path(), STAYS, &["--slots", "2"]);
    let mut call = desk.welcome(60_000).await;
    let (mut stays, mut ends) = (Leash::new(folder.path(), "stays"), Leash::new(folder.path(), "ends"));
    call.assign("job-1", 1, json!({ "leash": stays.path })).await;
    call.status("job-1", "STARTING").await;
    let flag = folder.path().join("end-now");
    let then = format!("until test -e {}; do sleep 0.05; done; echo out of tape >&2; exit 9", flag.display());
    call.assign("job-2", 1, json!({ "leash": ends.path, "then": then })).await;
    call.status("job-2", "STARTING").await;

    stays.says("began").await;
    call.close(1001).await;
    std::fs::write(&flag, "").expect("a file");
    ends.gone().await;
    let mut call = desk.next().await;
    // The end may have come to the agent just before or after the hello; in either case it is told after the welcome.
    assert_eq!(call.hello["activeJobs"][0]["jobId"], "job-1");
    call.say("agent.hello.ack", json!({ "heartbeatIntervalMs": 200, "heartbeatTimeoutMs": 2_000 })).await;
    let failed = call.status("job-2", "FAILED").await;
    assert!(failed["error"].as_str().expect("an error").contains("out of tape"), "{failed}");
    assert_eq!(call.beat().await[0]["jobId"], "job-1");
    call.say("agent.job.kill", json!({ "jobId": "job-1" })).await;
    call.status("job-1", "STOPPED").await;
    assert!(stays.gone().await.is_empty(), "the same program ran on");
}

#[tokio::test]
async fn a_silent_orchestrator_is_left_and_after_its_grace_the_jobs_are_ended() {
    let (desk, folder) = (Desk::open().await, tempfile::tempdir().expect("a folder"));
    let _agent = Agent::start(&desk.url(), folder.path(), STAYS, &[]);
    let mut call = desk.welcome(1_500).await;
    let mut leash = Leash::new(folder.path(), "leash");
    call.assign("job-1", 1, json!({ "leash": leash.path })).await;
    call.status("job-1", "STARTING").await;
    let began = tokio::time::Instant::now();
    // Nobody reads, so nobody answers pings: half open. The agent comes back, and is not welcomed.
    let again = desk.next().await;
    assert!(began.elapsed() >= Duration::from_secs(2), "{:?}", began.elapsed());
    assert_eq!(again.hello["activeJobs"][0]["jobId"], "job-1");
    leash.gone().await;
    let silence = began.elapsed();
    assert!(silence >= Duration::from_secs(3) && silence < Duration::from_secs(30), "{silence:?}");
    drop((call, again));
    let mut call = desk.welcome(0).await;
    let failed = call.status("job-1", "FAILED").await;
    assert!(failed["error"].as_str().expect("an error").contains("out of contact"), "{failed}");
}

#[tokio::test]
async fn a_killed_agent_leaves_no_program_behind() {
    let (desk, folder) = (Desk::open().await, tempfile::tempdir().expect("a folder"));
    let agent = Agent::start(&desk.url(), folder.path(), STAYS, &[]);
    let mut call = desk.welcome(0).await;
    let mut leash = Leash::new(folder.path(), "leash");
    // The agent's ends of its pipes are gone with it: a program that writes there would be ended by that.
    let then =
        "exec >/dev/null 2>&1; trap \"echo closes the file >&3; exit 0\" TERM; (while :; do sleep 0.05; done) & :";
    call.assign("job-1", 1, json!({ "leash": leash.path, "then": then })).await;
    call.status("job-1", "STARTING").await;
    leash.says("began").await;
    agent.signal("KILL");
    assert_eq!(leash.gone().await, ["closes the file"], "TERM came first");
    assert_eq!(agent.ended().await, None);
}

#[tokio::test]
async fn told_to_end_it_lets_jobs_finish_and_then_stops_them() {
    let (desk, folder) = (Desk::open().await, tempfile::tempdir().expect("a folder"));
    let agent = Agent::start(&desk.url(), folder.path(), STAYS, &["--slots", "3", "--drain", "1s"]);
    let mut call = desk.welcome(0).await;
    let flag = folder.path().join("end-now");
    let then = format!("until test -e {}; do sleep 0.05; done; exit 0", flag.display());
    call.assign("job-1", 1, json!({ "leash": "/dev/null", "then": then })).await;
    call.assign("job-2", 1, json!({ "leash": "/dev/null" })).await;
    call.status("job-1", "STARTING").await;
    call.status("job-2", "STARTING").await;
    agent.signal("TERM");
    assert_eq!(call.hear("agent.hello", |_| true).await["drain"], true);
    call.assign("job-3", 1, json!({ "leash": "/dev/null" })).await;
    assert_eq!(call.ack("job-3").await["accepted"], false);
    std::fs::write(&flag, "").expect("a file");
    assert_eq!(call.status("job-1", "STOPPED").await["exitCode"], 0, "it was let finish");
    let failed = call.status("job-2", "FAILED").await;
    assert!(failed["error"].as_str().expect("an error").contains("shut down"), "{failed}");
    call.ended().await;
    assert_eq!(agent.ended().await, Some(0));
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    let (desk, folder) = (Desk::open().await, tempfile::tempdir().expect("a folder"));
    let agent = Agent::start(&desk.url(), folder.path(), STAYS, &["--drain", "1h"]);
    let mut call = desk.welcome(0).await;
    let mut leash = Leash::new(folder.path(), "leash");
    call.assign("job-1", 1, json!({ "leash": leash.path, "then": "trap \"\" TERM" })).await;
    call.status("job-1", "STARTING").await;
    leash.says("began").await;
    agent.signal("TERM");
    call.hear("agent.hello", |hello| hello["drain"] == true).await;
    agent.signal("TERM");
    leash.gone().await;
    assert_eq!(agent.ended().await, Some(1));
}

#[tokio::test]
async fn who_is_not_wanted_ends_its_jobs_and_goes() {
    for (code, exit) in [(4401, 3), (4409, 1)] {
        let (desk, folder) = (Desk::open().await, tempfile::tempdir().expect("a folder"));
        let agent = Agent::start(&desk.url(), folder.path(), STAYS, &["--drain", "1h"]);
        let mut call = desk.welcome(0).await;
        let mut leash = Leash::new(folder.path(), "leash");
        call.assign("job-1", 1, json!({ "leash": leash.path })).await;
        leash.says("began").await;
        call.close(code).await;
        leash.gone().await;
        assert_eq!(agent.ended().await, Some(exit));
    }
}
