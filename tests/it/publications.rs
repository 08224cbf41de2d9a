//! The life of a publication through the doors, with the whole service and the loop off.

use std::time::Duration;

use serde_json::{Value, json};
use sqlx::Connection;

use crate::on_both;
use crate::support::World;
use crate::support::process::Process;
use crate::support::world::{list, time};

/// POSTs a clip; returns its id.
async fn posted_clip(world: &World) -> i64 {
    let clip = json!({ "title": "a clip", "media_uri": "s3://clips/1.mp4", "visual_score": 61.5 });
    let (status, clip) = world.post("/v1/clips", &clip).await;
    assert_eq!(status, 201, "{clip}");
    assert_eq!(clip["status"], "ready");
    clip["id"].as_i64().expect("an id")
}

/// POSTs a publication; returns its id.
async fn posted_log(world: &World, log: Value) -> i64 {
    let (status, log) = world.post("/v1/publish-logs", &log).await;
    assert_eq!(status, 201, "{log}");
    log["id"].as_i64().expect("an id")
}

async fn log(world: &World, id: i64) -> Value {
    let (status, log) = world.get(&format!("/v1/publish-logs/{id}")).await;
    assert_eq!(status, 200, "{log}");
    log
}

async fn posts(world: &World) -> i64 {
    world.number("SELECT COUNT(*) FROM sandbox_posts").await
}

/// Waits until the publication is in `status`, while time goes on.
async fn becomes(world: &World, id: i64, status: &str) {
    world.until_in_time(&format!("SELECT status FROM publish_logs WHERE id = {id}"), status).await;
}

/// Has the platforms asked, and waits until the answers are in.
async fn reconcile(world: &mut World) {
    world.rules("story.rhai", "rule \"ask\" priority 5 then trigger_reconciliation() because \"the story asks\";");
    let cycle = world.run_once().await;
    assert_eq!(cycle["execution"]["succeeded"], 1, "{cycle}");
    world
        .until_in_time(
            "SELECT COUNT(*) FROM jobs WHERE kind = 'reconcile' AND status NOT IN ('completed', 'failed')",
            "0",
        )
        .await;
    assert_eq!(world.text("SELECT MAX(error) FROM jobs WHERE kind = 'reconcile'").await, "");
}

/// Starts the whole service with a folder for rules.
async fn start(world: &mut World) {
    world.rules("story.rhai", "rule \"none\" priority 5 when false then trigger_reconciliation() because \"x\";");
    world.start().await;
}

on_both! {
    async fn a_publication_of_the_door_goes_out_with_the_loop_off(world) {
        world.start().await;
        let clip = posted_clip(&world).await;
        let id = posted_log(&world, json!({ "clip_id": clip, "platform": "tiktok" })).await;
        becomes(&world, id, "published").await;
        let log = log(&world, id).await;
        assert!(log["external_url"].as_str().expect("an address").starts_with("https://"), "{log}");
        assert!(log["external_id"].is_string() && log["published_at"].is_string(), "{log}");
        assert_eq!((&log["last_error"], &log["retry_count"]), (&Value::Null, &json!(0)));
        assert_eq!(posts(&world).await, 1);
        assert_eq!(world.text("SELECT status FROM clips").await, "published");
        assert_eq!(world.text("SELECT status FROM jobs WHERE kind = 'publish'").await, "completed");
        let entries = world.ledger("publishing.published").await;
        assert_eq!((entries.len(), &entries[0]["subject"]), (1, &json!(format!("publish_log:{id}"))));
        assert_eq!(world.get("/orchestrator/status").await.1["running"], false);
        assert_eq!(world.number("SELECT COUNT(*) FROM cycles").await, 0);
        let (status, problem) = world.post("/v1/publish-logs", &json!({ "clip_id": clip, "platform": "tiktok" })).await;
        assert_eq!(status, 409, "{problem}");
    }

    async fn a_publication_of_plain_sql_goes_out(world) {
        world.start().await;
        world.sql("INSERT INTO clips (title, media_uri, visual_score) VALUES ('a clip', 's3://clips/1.mp4', 50)").await;
        world.sql("INSERT INTO publish_logs (clip_id, platform) SELECT id, 'youtube' FROM clips").await;
        becomes(&world, 1, "published").await;
        assert_eq!(posts(&world).await, 1);
    }

    async fn a_scheduled_publication_waits_for_its_time(world) {
        world.start().await;
        let clip = posted_clip(&world).await;
        let by_door = posted_log(&world, json!({ "clip_id": clip, "platform": "tiktok", "scheduled_at": "2026-11-20T16:00:00Z" })).await;
        let by_sql = world.log(clip, "youtube", "scheduled", &[("scheduled_at", "'2026-11-20T16:00:00.000Z'")]).await;
        let given_up = posted_log(&world, json!({ "clip_id": clip, "platform": "instagram", "scheduled_at": "2026-11-20T16:00:00Z" })).await;
        let (status, cancelled) = world.patch(&format!("/v1/publish-logs/{given_up}"), &json!({ "status": "cancelled" })).await;
        assert_eq!(status, 200, "{cancelled}");
        world.set_time("2026-11-20T15:59:50Z");
        let now = posted_log(&world, json!({ "clip_id": posted_clip(&world).await, "platform": "tiktok" })).await;
        becomes(&world, now, "published").await;
        assert_eq!(log(&world, by_door).await["status"], "scheduled");
        world.set_time("2026-11-20T16:00:00Z");
        becomes(&world, by_door, "published").await;
        becomes(&world, by_sql, "published").await;
        for id in [by_door, by_sql] {
            assert!(time(log(&world, id).await["published_at"].as_str().expect("a time")) >= time("2026-11-20T16:00:00Z"));
        }
        assert_eq!(log(&world, given_up).await["status"], "cancelled");
        assert_eq!(posts(&world).await, 3);
    }

    async fn a_refusal_is_a_failure_that_can_be_retried(world) {
        world.config.publishing.sandbox.refuse = 1.0;
        start(&mut world).await;
        let clip = posted_clip(&world).await;
        let id = posted_log(&world, json!({ "clip_id": clip, "platform": "tiktok" })).await;
        becomes(&world, id, "failed").await;
        let failed = log(&world, id).await;
        assert_eq!(failed["last_error"], "the platform refused the clip");
        assert!(failed["failed_at"].is_string());
        assert_eq!(posts(&world).await, 0);
        assert_eq!(world.ledger("publishing.refused").await.len(), 1);
        assert_eq!(world.snapshot().await["publish_logs"]["retryable"][0]["id"], id);
        assert_eq!(world.number("SELECT MAX(attempt) FROM jobs WHERE kind = 'publish'").await, 1, "a publish job has one attempt");
        // Nothing sends it again by itself.
        world.clock.advance(Duration::from_secs(6 * 3600));
        world.until_in_time("SELECT COUNT(*) FROM jobs WHERE status IN ('pending', 'processing')", "0").await;
        assert_eq!(log(&world, id).await["status"], "failed");
        world.rules("story.rhai", &format!("rule \"again\" priority 5 cooldown \"1d\" then retry_failed_log({id}) because \"x\";"));
        world.run_once().await;
        world.clock.advance(Duration::from_secs(301));
        becomes(&world, id, "failed").await;
        world.until_in_time("SELECT COUNT(*) FROM jobs WHERE kind = 'publish' AND status = 'completed'", "2").await;
        assert_eq!(log(&world, id).await["retry_count"], 1);
    }

    async fn a_platform_that_is_busy_is_asked_again_at_its_time_and_not_for_ever(world) {
        world.config.publishing.sandbox.throttle = 1.0;
        world.start().await;
        let clip = posted_clip(&world).await;
        let id = posted_log(&world, json!({ "clip_id": clip, "platform": "tiktok" })).await;
        let mut attempts = 0;
        for retry in 0..3 {
            becomes(&world, id, "retry").await;
            attempts += 1;
            let log = log(&world, id).await;
            assert_eq!(log["retry_count"], retry, "{log}");
            let at = time(log["scheduled_at"].as_str().expect("a time"));
            let wait = (at - time(log["attempted_at"].as_str().expect("a time"))).num_seconds();
            assert!((60..=300).contains(&wait), "{wait} s");
            world.until("SELECT COUNT(*) FROM jobs WHERE kind = 'publish' AND status = 'completed'", &attempts.to_string()).await;
            world.set_time(&(at - chrono::TimeDelta::seconds(2)).to_rfc3339());
            world.until("SELECT COUNT(*) FROM jobs WHERE status IN ('pending', 'processing')", "0").await;
            assert_eq!(world.number("SELECT COUNT(*) FROM jobs").await, attempts, "not before its time");
            world.set_time(&at.to_rfc3339());
            world.until_in_time("SELECT COUNT(*) FROM jobs WHERE kind = 'publish' AND status = 'completed'", &(attempts + 1).to_string()).await;
        }
        let last = time(log(&world, id).await["scheduled_at"].as_str().expect("a time"));
        world.set_time(&last.to_rfc3339());
        becomes(&world, id, "failed").await;
        assert_eq!(log(&world, id).await["retry_count"], 3, "no more than its retries");
        assert_eq!(world.number("SELECT COUNT(*) FROM jobs").await, 4);
        assert_eq!(posts(&world).await, 0);
        assert_eq!(world.ledger("publishing.throttled").await.len(), 4);
    }

    async fn a_full_platform_goes_on_after_midnight(world) {
        world.config.publishing.sandbox.quota_per_day = 1;
        world.start().await;
        let (one, two) = (posted_clip(&world).await, posted_clip(&world).await);
        let first = posted_log(&world, json!({ "clip_id": one, "platform": "tiktok" })).await;
        becomes(&world, first, "published").await;
        let second = posted_log(&world, json!({ "clip_id": two, "platform": "tiktok" })).await;
        becomes(&world, second, "retry").await;
        assert_eq!(log(&world, second).await["scheduled_at"], "2026-11-21T00:00:00.000Z");
        let elsewhere = posted_log(&world, json!({ "clip_id": two, "platform": "youtube" })).await;
        becomes(&world, elsewhere, "published").await;
        world.set_time("2026-11-21T00:00:00Z");
        becomes(&world, second, "published").await;
        assert_eq!(posts(&world).await, 3);
    }

    async fn a_lost_answer_is_unknown_until_the_platform_says_that_it_is_out(world) {
        world.config.publishing.sandbox.lose_answer = 1.0;
        world.config.publishing.call_timeout_ms = 5_000;
        world.config.publishing.platforms.get_mut("tiktok").expect("a platform").cost_cents = 300;
        start(&mut world).await;
        let campaign = world.campaign(1_000).await;
        let clip = world.clip(60.0, Some(campaign)).await;
        let id = posted_log(&world, json!({ "clip_id": clip, "platform": "tiktok" })).await;
        becomes(&world, id, "unknown").await;
        assert_eq!(posts(&world).await, 1, "it was accepted all the same");
        assert_eq!(world.ledger("publishing.unknown").await.len(), 1);
        assert_eq!(log(&world, id).await["external_id"], Value::Null);
        // Nobody sends it again, however long it takes.
        world.rules("story.rhai", &format!(
            "rule \"a\" priority 5 then retry_failed_log({id}) because \"x\"; rule \"b\" priority 5 then force_publish({id}) because \"x\";"
        ));
        let cycle = world.run_once().await;
        let outcomes: Vec<_> = list(&cycle["execution"]["results"]).iter().map(|result| result["outcome"].clone()).collect();
        assert_eq!(outcomes, ["refused", "refused"]);
        let (status, problem) = world.post("/v1/publish-logs", &json!({ "clip_id": clip, "platform": "tiktok" })).await;
        assert_eq!(status, 409, "{problem}");
        reconcile(&mut world).await;
        let settled = log(&world, id).await;
        assert_eq!((&settled["status"], &settled["last_error"]), (&json!("published"), &Value::Null), "{settled}");
        assert_eq!(settled["external_id"].as_str().expect("an id"), world.text("SELECT external_id FROM sandbox_posts").await);
        assert_eq!(posts(&world).await, 1);
        assert_eq!(world.number("SELECT spent_cents FROM campaigns").await, 300, "paid once");
        let entries = world.ledger("publishing.reconciled").await;
        assert_eq!((entries.len(), &entries[0]["payload"]["outcome"]), (1, &json!("published")));
    }

    async fn a_lost_request_is_unknown_until_it_is_old_enough_to_have_failed(world) {
        world.config.publishing.sandbox.lose_request = 1.0;
        world.config.publishing.call_timeout_ms = 5_000;
        start(&mut world).await;
        let clip = posted_clip(&world).await;
        let id = posted_log(&world, json!({ "clip_id": clip, "platform": "tiktok" })).await;
        becomes(&world, id, "unknown").await;
        reconcile(&mut world).await;
        assert_eq!(log(&world, id).await["status"], "unknown", "the request may still be on its way");
        world.clock.advance(Duration::from_secs(600));
        reconcile(&mut world).await;
        let settled = log(&world, id).await;
        assert_eq!((&settled["status"], &settled["retry_count"]), (&json!("failed"), &json!(0)), "{settled}");
        assert!(settled["last_error"].as_str().expect("why").contains("never received"), "{settled}");
        assert_eq!(posts(&world).await, 0);
        assert_eq!(world.snapshot().await["publish_logs"]["retryable"][0]["id"], id);
    }

    async fn what_is_long_overdue_goes_out_one_by_one(world) {
        world.config.publishing.call_timeout_ms = 300_000; // time goes in minutes here
        for n in 0..4 {
            let clip = world.clip(50.0, None).await;
            let at = world.ago(60 + n);
            world.log(clip, "tiktok", "scheduled", &[("scheduled_at", &at)]).await;
            world.log(clip, "youtube", "scheduled", &[("scheduled_at", &at)]).await;
        }
        let clip = world.clip(50.0, None).await;
        let soon = world.ago(-20);
        let fresh = world.log(clip, "tiktok", "scheduled", &[("scheduled_at", &soon)]).await;
        world.start().await;
        for _ in 0..90 {
            world.clock.advance(Duration::from_secs(60));
            tokio::time::sleep(Duration::from_millis(150)).await; // what is due now goes out now
        }
        world.until_in_time("SELECT COUNT(*) FROM publish_logs WHERE status = 'published'", "9").await;
        assert_eq!(posts(&world).await, 9);
        let (_, page) = world.get("/v1/publish-logs?limit=100").await;
        let attempted = |log: &Value| time(log["attempted_at"].as_str().expect("a time"));
        for platform in ["tiktok", "youtube"] {
            let logs = list(&page["items"]).iter().filter(|log| log["platform"] == platform && log["id"] != fresh);
            let mut times: Vec<_> = logs.map(attempted).collect();
            times.sort_unstable();
            assert_eq!(times.len(), 4);
            for pair in times.windows(2) {
                assert!((pair[1] - pair[0]).num_minutes() >= 15, "{platform}: {times:?}");
            }
        }
        let on_time = list(&page["items"]).iter().find(|log| log["id"] == fresh).map(attempted).expect("the fresh one");
        assert!((on_time - time("2026-11-20T12:20:00Z")).num_minutes() <= 2, "what is due on time does not wait: {on_time}");
    }

    async fn ten_kills_in_the_middle_of_many_publications_post_nothing_twice_and_forget_nothing(world) {
        world.rules("story.rhai", "rule \"ask\" priority 5 then trigger_reconciliation() because \"the story asks\";");
        let rules = world.folder().join("rules");
        let environment = [
            ("RULES_DIR", rules.to_str().expect("a path")),
            ("SHOWRUNNER_QUEUE__LEASE_SECONDS", "5"),
            ("POLL_INTERVAL_MS", "100"),
            ("SHOWRUNNER_PUBLISHING__CALL_TIMEOUT_MS", "1000"),
            ("SHOWRUNNER_PUBLISHING__SETTLE_MINUTES", "1"),
            ("SHOWRUNNER_PUBLISHING__SANDBOX__LATENCY_MIN_MS", "20"),
            ("SHOWRUNNER_PUBLISHING__SANDBOX__LATENCY_MAX_MS", "300"),
            ("SHOWRUNNER_PUBLISHING__SANDBOX__REFUSE", "0.1"),
            ("SHOWRUNNER_PUBLISHING__SANDBOX__LOSE_ANSWER", "0.05"),
        ];
        for n in 0..80 {
            world.sql(&format!("INSERT INTO clips (title, media_uri, visual_score) VALUES ('clip {n}', 's3://clips/{n}.mp4', 50)")).await;
        }
        for platform in ["tiktok", "youtube", "instagram"] {
            world.sql(&format!("INSERT INTO publish_logs (clip_id, platform) SELECT id, '{platform}' FROM clips")).await;
        }
        for kill in 1..=10 {
            let process = Process::serve(world.url(), &environment).await;
            // Killed at another point each time, while calls are under way.
            let attempts = "(SELECT COUNT(*) FROM publish_logs WHERE attempted_at IS NOT NULL)";
            let enough = format!("SELECT CASE WHEN {attempts} >= {} THEN 'enough' ELSE 'few' END", kill * 17);
            world.until(&enough, "enough").await;
            tokio::time::sleep(Duration::from_millis(kill * 7 % 40)).await;
            process.end("KILL").await;
        }
        let in_flight = world.number("SELECT COUNT(*) FROM publish_logs WHERE status = 'publishing'").await;
        assert!(in_flight > 0, "the last kill came in the middle");
        let process = Process::serve(world.url(), &environment).await;
        world.until("SELECT COUNT(*) FROM publish_logs WHERE status IN ('pending', 'publishing')", "0").await;
        let unknown = world.number("SELECT COUNT(*) FROM publish_logs WHERE status = 'unknown'").await;
        assert!(unknown > 0, "some outcome was lost");
        // An hour later, for those that no platform has heard of.
        let earlier = if world.is_sqlite() {
            "strftime('%Y-%m-%dT%H:%M:%fZ', attempted_at, '-1 hour')"
        } else {
            "attempted_at - interval '1 hour'"
        };
        world.sql(&format!("UPDATE publish_logs SET attempted_at = {earlier} WHERE status = 'unknown'")).await;
        process.poke("/orchestrator/run-once").await;
        world.until("SELECT COUNT(*) FROM publish_logs WHERE status NOT IN ('published', 'failed')", "0").await;
        assert_eq!(process.end("TERM").await, Some(0));

        let twice = "SELECT COUNT(*) FROM (SELECT clip_id FROM sandbox_posts GROUP BY clip_id, platform HAVING COUNT(*) > 1) AS twice";
        assert_eq!(world.number(twice).await, 0);
        assert_eq!(world.number("SELECT COUNT(*) FROM publish_logs").await, 240);
        let with_a_post = "SELECT COUNT(*) FROM publish_logs AS log WHERE status = '{}' AND EXISTS (SELECT 1 FROM sandbox_posts AS post WHERE post.clip_id = log.clip_id AND post.platform = log.platform)";
        let published = world.number("SELECT COUNT(*) FROM publish_logs WHERE status = 'published'").await;
        assert_eq!(world.number(&with_a_post.replace("{}", "published")).await, published, "what is published is out");
        assert_eq!(world.number(&with_a_post.replace("{}", "failed")).await, 0, "what failed is not");
        assert_eq!(posts(&world).await, published);
        assert!(published > 80, "{published}");
        let (code, said, error) = world.command(&["ledger", "verify"]).await;
        assert_eq!(code, 0, "{said}{error}");
    }
}

async fn run(connection: &mut sqlx::PgConnection, text: &'static str) {
    sqlx::raw_sql(text).execute(connection).await.expect(text);
}

/// Whoever ends a job holds the job and goes on to its publication. Who changes or forces that publication meanwhile
/// has to come the same way, or one of the two is cut off by the database.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_and_a_forced_publication_give_way_to_the_end_of_its_job() {
    let Some(mut world) = World::on_postgres().await else { return };
    world.rules("force.rhai", "rule \"force\" priority 5 then force_publish(1) because \"now\";\n");
    let clip = world.clip(90.0, None).await;
    world.sql("INSERT INTO jobs (kind, input) VALUES ('publish', '{\"log_id\": 1}')").await;
    world.log(clip, "tiktok", "pending", &[("job_id", "1")]).await;
    world.start_still().await;
    let world = std::sync::Arc::new(world);
    for forced in [false, true] {
        let mut ending = sqlx::PgConnection::connect(world.url()).await.expect("another connection");
        run(&mut ending, "BEGIN; SELECT 1 FROM jobs WHERE id = 1 FOR UPDATE").await;
        let other = tokio::spawn({
            let world = world.clone();
            async move {
                if forced {
                    world.run_once().await["execution"]["results"][0]["outcome"].clone()
                } else {
                    json!(world.patch("/v1/publish-logs/1", &json!({ "priority": 7 })).await.0)
                }
            }
        });
        let waiting =
            "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
        world.until(waiting, "1").await;
        run(&mut ending, "UPDATE publish_logs SET last_error = 'ended' WHERE id = 1; COMMIT").await;
        let said = other.await.expect("an answer");
        assert_eq!(said, if forced { json!("executed") } else { json!(200) });
    }
    std::sync::Arc::into_inner(world).expect("nobody else").end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_changes_a_publication_holds_its_job_before_it() {
    use sqlx::Connection;
    let Some(mut world) = World::on_postgres().await else { return };
    world.start_still().await;
    let clip = world.clip(50.0, None).await;
    world.sql("INSERT INTO jobs (kind) VALUES ('publish')").await;
    let log = world.log(clip, "tiktok", "pending", &[("job_id", "1")]).await;
    let mut worker = sqlx::PgConnection::connect(world.url()).await.expect("a worker's connection");
    for change in [json!({ "priority": 7 }), json!({ "status": "cancelled" })] {
        sqlx::raw_sql("BEGIN; SELECT 1 FROM jobs WHERE id = 1 FOR UPDATE").execute(&mut worker).await.expect("the job");
        let path = format!("/v1/publish-logs/{log}");
        let end = async {
            let waiting =
                "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
            world.until(waiting, "1").await;
            // As a worker ends a job: from the job to its publication.
            let ended = "UPDATE publish_logs SET updated_at = updated_at WHERE job_id = 1; COMMIT";
            sqlx::raw_sql(ended)
                .execute(&mut worker)
                .await
                .expect("nobody holds the publication and waits for the job");
        };
        let ((status, body), ()) = tokio::join!(world.patch(&path, &change), end);
        assert_eq!(status, 200, "{body}");
    }
    world.end().await;
}
