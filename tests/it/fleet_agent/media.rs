//! Real ffmpeg on generated media.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::json;

use super::desk::{Agent, Desk};

/// Set where a skipped test is a failure.
pub const REQUIRE_VARIABLE: &str = "SHOWRUNNER_TEST_REQUIRE_FFMPEG";

/// A test picture and a tone in real time, recorded; the config's URL is only noted in the file.
pub const RECORD: &str = "ffmpeg -nostats -progress pipe:1 -re -f lavfi -i testsrc=size=160x120:rate=25 \
    -f lavfi -i sine=frequency=440 -af volume@mute=1 -c:v mpeg4 -c:a pcm_s16le -metadata comment={streamUrl} {file}";

/// Whether ffmpeg is installed; where it is not, a line says so.
pub fn has_ffmpeg() -> bool {
    let found = Command::new("ffmpeg").arg("-version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    let found = found.is_ok_and(|ended| ended.success());
    if !found {
        assert!(std::env::var_os(REQUIRE_VARIABLE).is_none(), "{REQUIRE_VARIABLE} is set and there is no ffmpeg");
        eprintln!("skipped: no ffmpeg; install it (apt-get install ffmpeg)");
    }
    found
}

/// Seconds of silence in a recording, as ffmpeg itself finds them.
pub fn silence(file: &Path) -> f64 {
    let mut command = Command::new("ffmpeg");
    command.args(["-hide_banner", "-nostdin", "-i"]).arg(file);
    let output = command.args(["-af", "silencedetect=noise=-50dB:d=0.2", "-f", "null", "-"]).output().expect("ffmpeg");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "the recording is whole: {said}");
    let lengths = said.split("silence_duration: ").skip(1);
    lengths.map(|rest| rest.split_whitespace().next().and_then(|word| word.parse::<f64>().ok()).unwrap_or(0.0)).sum()
}

#[tokio::test]
async fn ffmpeg_tells_its_progress_is_muted_and_closes_its_file() {
    if !has_ffmpeg() {
        return;
    }
    let (desk, folder) = (Desk::open().await, tempfile::tempdir().expect("a folder"));
    let _agent = Agent::start(&desk.url(), folder.path(), RECORD, &[]);
    let mut call = desk.welcome(0).await;
    let config = json!({ "streamUrl": "rtmp://example.com/live", "file": "out.mkv" });
    call.assign("job-1", 1, config).await;
    call.status("job-1", "STARTING").await;
    call.status("job-1", "RUNNING").await;
    let progress = |told: &serde_json::Value| told["progress"]["positionMs"].as_i64().is_some_and(|at| at > 0);
    let told = call.hear("agent.job.update", progress).await;
    assert!(told["progress"]["frames"].as_i64().is_some_and(|frames| frames > 0), "{told}");
    assert_eq!(told["lease"], 1);

    call.say("agent.job.mute", json!({ "jobId": "job-1" })).await;
    assert_eq!(call.hear("agent.job.mute", |_| true).await, json!({ "jobId": "job-1", "success": true }));
    // The next report of progress is five seconds of stream away: so long there is silence.
    call.hear("agent.job.update", progress).await;
    call.say("agent.job.unmute", json!({ "jobId": "job-1" })).await;
    assert_eq!(call.hear("agent.job.unmute", |_| true).await["success"], true);
    call.hear("agent.job.update", progress).await;
    call.say("agent.job.stop", json!({ "jobId": "job-1", "graceMs": 20_000 })).await;
    let stopped = call.status("job-1", "STOPPED").await;
    assert_eq!(stopped["exitCode"], 255, "ffmpeg ended by itself: {stopped}");
    let silent = silence(&folder.path().join("out.mkv"));
    assert!((1.0..12.0).contains(&silent), "{silent} s of silence");
}

#[tokio::test]
async fn how_far_a_stream_came_is_told_with_its_end() {
    let (desk, folder) = (Desk::open().await, tempfile::tempdir().expect("a folder"));
    // What ffmpeg prints of a stream that is shorter than the time between two tellings.
    let command = r#"sh -c 'printf "frame=5\nout_time_us=200000\nprogress=continue\nframe=75\nout_time_us=3000000\nprogress=end\n"; exit "$0"' {code}"#;
    let _agent = Agent::start(&desk.url(), folder.path(), command, &[]);
    let mut call = desk.welcome(0).await;
    for (job, code, status) in [("job-1", 0, "STOPPED"), ("job-2", 3, "FAILED")] {
        call.assign(job, 1, json!({ "code": code })).await;
        let ended = call.status(job, status).await;
        assert_eq!(ended["progress"], json!({ "frames": 75, "positionMs": 3_000 }), "{ended}");
    }
    // It is told again after an outage, like the end itself.
    call.close(1001).await;
    let mut call = desk.welcome(0).await;
    assert_eq!(call.status("job-1", "STOPPED").await["progress"]["frames"], 75);
}

#[tokio::test]
async fn ffmpeg_without_the_filter_says_so_and_its_last_lines_explain_a_failure() {
    if !has_ffmpeg() {
        return;
    }
    let (desk, folder) = (Desk::open().await, tempfile::tempdir().expect("a folder"));
    let command = "ffmpeg -re -f lavfi -i {input} -f null -";
    let _agent = Agent::start(&desk.url(), folder.path(), command, &[]);
    let mut call = desk.welcome(0).await;
    call.assign("job-1", 1, json!({ "input": "sine=frequency=440" })).await;
    call.status("job-1", "RUNNING").await;
    call.say("agent.job.mute", json!({ "jobId": "job-1" })).await;
    let answer = call.hear("agent.job.mute", |_| true).await;
    assert_eq!(answer["success"], false);
    call.say("agent.job.kill", json!({ "jobId": "job-1" })).await;
    call.status("job-1", "STOPPED").await;

    call.assign("job-2", 1, json!({ "input": "no_such_source" })).await;
    let failed = call.status("job-2", "FAILED").await;
    let error = failed["error"].as_str().expect("an error");
    assert!(error.contains("ffmpeg ended with exit code 1") && error.contains("no_such_source"), "{error}");
}
