//! The seven actions, asked for by rules of operators: effect, refusals, ledger entry.

use std::time::Duration;

use serde_json::{Value, json};

use crate::on_both;
use crate::support::World;
use crate::support::world::{EVENING, list};

/// All that an action could change of publications and jobs, in one line.
const STATE: &str = "
    SELECT (SELECT CAST(COUNT(*) AS TEXT) || ' ' || COALESCE(MIN(status) || ' ' || MAX(status), '') || ' '
                || COALESCE(CAST(SUM(retry_count + postponed_count + priority) AS TEXT), '') || ' '
                || COALESCE(CAST(MAX(scheduled_at) AS TEXT), '') FROM publish_logs)
        || ' / ' || (SELECT CAST(COUNT(*) AS TEXT) || COALESCE(MIN(status) || ' ' || MAX(status), '') FROM jobs)";

/// Runs a cycle whose one rule asks for `action`; gives the result of that action, whose ledger entry has been checked.
async fn act(world: &mut World, action: &str) -> Value {
    world.rules("story.rhai", &format!("rule \"story\"\n priority 5\n then {action}\n because \"the story asks\";\n"));
    if world.app.is_none() {
        world.start_still().await;
    }
    let cycle = world.run_once().await;
    let results = list(&cycle["execution"]["results"]);
    assert_eq!(results.len(), 1, "{cycle}");
    let result = results[0].clone();
    let executed = result["outcome"] == "executed";
    let (succeeded, failed) = if executed { (1, 0) } else { (0, 1) };
    let execution = &cycle["execution"];
    assert_eq!((&execution["succeeded"], &execution["failed"]), (&json!(succeeded), &json!(failed)));

    let (_, page) =
        world.get(&format!("/v1/ledger?event_type=orchestrator.action&cycle_id={}", cycle["cycle_id"])).await;
    let entries = list(&page["items"]);
    assert_eq!(entries.len(), 1, "one entry an action: {page}");
    let entry = &entries[0];
    let event = if executed { "orchestrator.action_executed" } else { "orchestrator.action_failed" };
    let severity = if executed { "info" } else { "warning" };
    assert_eq!((&entry["event_type"], &entry["severity"]), (&json!(event), &json!(severity)));
    assert_eq!((&entry["actor"], &entry["rule"]), (&json!("loop"), &json!("story")));
    assert_eq!(entry["subject"], result["target"]);
    assert_eq!(entry["payload"]["detail"], result["detail"]);
    assert_eq!(entry["payload"]["reasons"], json!(["the story asks"]));
    let name = action.split('(').next().expect("a name");
    assert_eq!((&entry["payload"]["action"]["action"], &result["action"]), (&json!(name), &json!(name)));
    result
}

/// Asks for `action`, which is carried out; gives its detail.
async fn done(world: &mut World, action: &str) -> Value {
    let result = act(world, action).await;
    assert_eq!(result["outcome"], "executed", "{result}");
    result["detail"].clone()
}

/// Asks for `action`, which is refused for the reason that contains `because`, and changes nothing.
async fn refused(world: &mut World, action: &str, because: &str) {
    let before = world.text(STATE).await;
    let result = act(world, action).await;
    assert_eq!(result["outcome"], "refused", "{action}: {result}");
    let reason = result["detail"]["refused"].as_str().expect("a reason");
    assert!(reason.contains(because), "{action}: `{reason}` does not say `{because}`");
    assert_eq!(world.text(STATE).await, before, "{action} was refused and changed something");
}

async fn status_of(world: &World, log: i64) -> String {
    world.text(&format!("SELECT status FROM publish_logs WHERE id = {log}")).await
}

async fn time_of(world: &World, log: i64) -> String {
    world.moment(&format!("SELECT scheduled_at FROM publish_logs WHERE id = {log}")).await
}

/// A time from now on this world's clock, as a literal for SQL.
fn at(world: &World, minutes: i64) -> String {
    world.ago(-minutes)
}

on_both! {
    async fn schedule_clip_takes_the_first_slot_of_the_next_window(world) {
        let clip = world.clip(70.0, None).await;
        let detail = done(&mut world, &format!("schedule_clip({clip}, \"youtube\")")).await;
        assert_eq!((&detail["platform"], &detail["scheduled_at"]), (&json!("youtube"), &json!("2026-11-20T17:00:00.000Z")));
        let log = detail["log_id"].as_i64().expect("a publication");
        assert_eq!(status_of(&world, log).await, "scheduled");
        assert_eq!(time_of(&world, log).await, "2026-11-20T17:00:00.000Z");
        assert_eq!(world.text("SELECT status FROM clips").await, "scheduled");
        assert_eq!(world.number("SELECT COUNT(*) FROM jobs").await, 0, "its job comes when it is due");
        let keys = world.text(&format!("SELECT idempotency_key FROM publish_logs WHERE id = {log}")).await;
        assert!(keys.len() >= 16, "{keys}");
    }

    async fn schedule_clip_without_a_platform_goes_through_the_unused_ones_by_their_slots(world) {
        let clip = world.clip(70.0, None).await;
        for (platform, slot) in [("tiktok", "16:00"), ("youtube", "17:00"), ("instagram", "18:00")] {
            let detail = done(&mut world, &format!("schedule_clip({clip})")).await;
            let wanted = format!("2026-11-20T{slot}:00.000Z");
            assert_eq!((&detail["platform"], &detail["scheduled_at"]), (&json!(platform), &json!(wanted)));
        }
        refused(&mut world, &format!("schedule_clip({clip})"), "every platform").await;
    }

    async fn schedule_clip_keeps_its_distance_and_the_daily_quota(world) {
        let platform = world.config.publishing.platforms.get_mut("tiktok").expect("a platform");
        (platform.spacing_minutes, platform.daily_quota) = (20, 3);
        let busy = world.clip(70.0, None).await;
        world.log(busy, "tiktok", "scheduled", &[("scheduled_at", "'2026-11-20T16:30:00.000Z'")]).await;
        let mut slots = Vec::new();
        for _ in 0..3 {
            let clip = world.clip(70.0, None).await;
            slots.push(done(&mut world, &format!("schedule_clip({clip}, \"tiktok\")")).await["scheduled_at"].clone());
        }
        // 16:20 would be ten minutes from the one at 16:30; the third of the day fills the quota.
        assert_eq!(slots, ["2026-11-20T16:00:00.000Z", "2026-11-20T16:50:00.000Z", "2026-11-21T16:00:00.000Z"]);
    }

    async fn schedule_clip_is_refused_for_clips_that_cannot_go_out(world) {
        refused(&mut world, "schedule_clip(99)", "there is no clip 99").await;
        let clip = world.clip(70.0, None).await;
        refused(&mut world, &format!("schedule_clip({clip}, \"my\" + \"space\")"), "`myspace` is not configured").await;
        world.log(clip, "tiktok", "published", &[]).await;
        refused(&mut world, &format!("schedule_clip({clip}, \"tiktok\")"), "already has a publication on tiktok").await;
        world.sql("UPDATE clips SET status = 'archived'").await;
        refused(&mut world, &format!("schedule_clip({clip}, \"youtube\")"), "archived").await;
    }

    async fn schedule_clip_keeps_to_its_campaigns_state_and_dates(world) {
        let campaign = world.campaign(50_000).await;
        let clip = world.clip(70.0, Some(campaign)).await;
        let schedule = format!("schedule_clip({clip}, \"tiktok\")");
        for status in ["draft", "paused", "completed"] {
            world.sql(&format!("UPDATE campaigns SET status = '{status}'")).await;
            refused(&mut world, &schedule, &format!("is {status}, not active")).await;
        }
        world.sql("UPDATE campaigns SET status = 'active'").await;
        let ended = world.ago(1);
        world.sql(&format!("UPDATE campaigns SET ends_at = {ended}")).await;
        refused(&mut world, &schedule, "is over").await;
        let before_the_window = at(&world, 3 * 60);
        world.sql(&format!("UPDATE campaigns SET ends_at = {before_the_window}")).await;
        refused(&mut world, &schedule, "no slot is free").await;
        let tomorrow_evening = at(&world, 29 * 60);
        world.sql(&format!("UPDATE campaigns SET ends_at = NULL, starts_at = {tomorrow_evening}")).await;
        let detail = done(&mut world, &schedule).await;
        assert_eq!(detail["scheduled_at"], "2026-11-21T17:00:00.000Z", "not before the campaign begins");
        assert_eq!(detail["campaign_id"], campaign);
    }

    async fn schedule_clip_spends_no_more_than_its_campaign_has(world) {
        world.config.publishing.platforms.get_mut("tiktok").expect("a platform").cost_cents = 400;
        let campaign = world.campaign(1_000).await;
        let (one, two, three) = (world.clip(70.0, Some(campaign)).await, world.clip(71.0, Some(campaign)).await, world.clip(72.0, Some(campaign)).await);
        assert_eq!(done(&mut world, &format!("schedule_clip({one}, \"tiktok\")")).await["cost_cents"], 400);
        done(&mut world, &format!("schedule_clip({two}, \"tiktok\")")).await;
        refused(&mut world, &format!("schedule_clip({three}, \"tiktok\")"), "200 of 1000 cents left").await;
        // Without a platform a cheaper one is found.
        assert_eq!(done(&mut world, &format!("schedule_clip({three})")).await["platform"], "youtube");
        world.sql("UPDATE campaigns SET spent_cents = 1000").await;
        let four = world.clip(73.0, Some(campaign)).await;
        refused(&mut world, &format!("schedule_clip({four})"), "cents left").await;
        world.set_time(EVENING);
        refused(&mut world, &format!("promote_high_score_clip({four})"), "cents left").await;
    }

    async fn promote_goes_out_in_the_open_window_that_closes_first_ahead_of_others(world) {
        world.set_time(EVENING);
        let clip = world.clip(90.0, None).await;
        for (platform, priority) in [("youtube", 50), ("instagram", 50), ("tiktok", 50)] {
            let detail = done(&mut world, &format!("promote_high_score_clip({clip})")).await;
            assert_eq!((&detail["platform"], &detail["priority"]), (&json!(platform), &json!(priority)));
            assert_eq!(detail["scheduled_at"], "2026-11-20T18:30:00.000Z", "at once");
        }
        refused(&mut world, &format!("promote_high_score_clip({clip})"), "no window is open on a platform where").await;
    }

    async fn promote_is_refused_where_nothing_can_go_out_now(world) {
        let clip = world.clip(90.0, None).await;
        refused(&mut world, "promote_high_score_clip(99)", "there is no clip 99").await;
        refused(&mut world, &format!("promote_high_score_clip({clip})"), "no window is open").await;
        world.set_time("2026-11-20T23:30:00Z");
        world.log(clip, "tiktok", "scheduled", &[("scheduled_at", "'2026-11-21T16:00:00.000Z'")]).await;
        refused(&mut world, &format!("promote_high_score_clip({clip})"), "no window is open").await;
        let campaign = world.campaign(50_000).await;
        let of_campaign = world.clip(90.0, Some(campaign)).await;
        let tomorrow = at(&world, 24 * 60);
        world.sql(&format!("UPDATE campaigns SET starts_at = {tomorrow}")).await;
        refused(&mut world, &format!("promote_high_score_clip({of_campaign})"), "no slot is free").await;
        world.sql("UPDATE campaigns SET starts_at = NULL, status = 'paused'").await;
        refused(&mut world, &format!("promote_high_score_clip({of_campaign})"), "paused").await;
        world.sql(&format!("UPDATE clips SET status = 'archived' WHERE id = {of_campaign}")).await;
        refused(&mut world, &format!("promote_high_score_clip({of_campaign})"), "archived").await;
    }

    async fn retry_schedules_a_failed_publication_after_a_growing_wait(world) {
        let clip = world.clip(70.0, None).await;
        let log = world.failed_log(clip, "tiktok", 5).await;
        let mut longest = Vec::new();
        for retry in 1..=3 {
            let detail = done(&mut world, &format!("retry_failed_log({log})")).await;
            assert_eq!((&detail["from"], &detail["to"], &detail["retry_count"]), (&json!("failed"), &json!("scheduled"), &json!(retry)));
            assert_eq!(status_of(&world, log).await, "scheduled");
            let due = crate::support::world::time(&time_of(&world, log).await);
            let wait = (due - crate::support::world::time(crate::support::world::NOON)).num_seconds();
            longest.push(300 << (retry - 1));
            assert!(wait > 0 && wait <= 300 << (retry - 1), "retry {retry} waits {wait} s, at most {longest:?}");
            refused(&mut world, &format!("retry_failed_log({log})"), "is scheduled and cannot be retried").await;
            world.sql("UPDATE publish_logs SET status = 'failed', last_error = 'again'").await;
        }
        refused(&mut world, &format!("retry_failed_log({log})"), "has used its 3 retries").await;
    }

    async fn retry_is_refused_for_all_but_failed_publications(world) {
        refused(&mut world, "retry_failed_log(99)", "there is no publication 99").await;
        let clip = world.clip(70.0, None).await;
        let log = world.log(clip, "tiktok", "unknown", &[]).await;
        refused(&mut world, &format!("retry_failed_log({log})"), "only reconciliation settles it").await;
        for status in ["pending", "publishing", "published", "cancelled"] {
            world.sql(&format!("UPDATE publish_logs SET status = '{status}'")).await;
            refused(&mut world, &format!("retry_failed_log({log})"), &format!("is {status} and cannot be retried")).await;
        }
        world.sql("UPDATE publish_logs SET status = 'failed'").await;
        world.log(clip, "tiktok", "pending", &[]).await;
        refused(&mut world, &format!("retry_failed_log({log})"), "another live publication on tiktok").await;
    }

    async fn retry_spends_no_more_than_the_campaign_has(world) {
        let campaign = world.campaign(1_000).await;
        let clip = world.clip(70.0, Some(campaign)).await;
        let columns = [("campaign_id", "1"), ("cost_cents", "400"), ("failed_at", "'2026-11-20T11:55:00.000Z'")];
        let log = world.log(clip, "tiktok", "failed", &columns).await;
        world.sql("UPDATE campaigns SET spent_cents = 700").await;
        refused(&mut world, &format!("retry_failed_log({log})"), "300 of 1000 cents left").await;
        world.sql("UPDATE campaigns SET spent_cents = 600").await;
        done(&mut world, &format!("retry_failed_log({log})")).await;
    }

    async fn reconciliation_is_one_job_at_a_time(world) {
        let detail = done(&mut world, "trigger_reconciliation()").await;
        let job = detail["job_id"].as_i64().expect("a job");
        assert_eq!(world.text(&format!("SELECT kind || ' ' || status FROM jobs WHERE id = {job}")).await, "reconcile pending");
        refused(&mut world, "trigger_reconciliation()", "already under way").await;
        world.sql("UPDATE jobs SET status = 'completed'").await;
        done(&mut world, "trigger_reconciliation()").await;
        assert_eq!(world.number("SELECT COUNT(*) FROM jobs WHERE kind = 'reconcile'").await, 2);
    }

    async fn downgrade_moves_a_day_later_at_most_three_times(world) {
        let clip = world.clip(20.0, None).await;
        let log = world.log(clip, "tiktok", "scheduled", &[("scheduled_at", "'2026-11-20T16:00:00.000Z'")]).await;
        let sent = world.log(clip, "youtube", "published", &[]).await;
        for day in 21..=23 {
            let detail = done(&mut world, &format!("downgrade_low_score_clip({clip})")).await;
            assert_eq!(list(&detail["postponed"]).len(), 1);
            assert_eq!(time_of(&world, log).await, format!("2026-11-{day}T16:00:00.000Z"));
            assert_eq!(status_of(&world, log).await, "scheduled");
        }
        refused(&mut world, &format!("downgrade_low_score_clip({clip})"), "postponed 3 times already").await;
        assert_eq!(status_of(&world, sent).await, "published");
    }

    async fn downgrade_keeps_the_local_hour_when_the_clocks_change(world) {
        world.config.publishing.time_zone = "America/New_York".to_owned();
        world.set_time("2027-03-13T12:00:00Z");
        let clip = world.clip(20.0, None).await;
        // 17:00 in New York, on the eve of the change to summer time.
        let log = world.log(clip, "tiktok", "scheduled", &[("scheduled_at", "'2027-03-13T22:00:00.000Z'")]).await;
        done(&mut world, &format!("downgrade_low_score_clip({clip})")).await;
        assert_eq!(time_of(&world, log).await, "2027-03-14T21:00:00.000Z");
    }

    async fn downgrade_is_refused_where_nothing_is_scheduled(world) {
        refused(&mut world, "downgrade_low_score_clip(99)", "clip 99").await;
        let clip = world.clip(20.0, None).await;
        refused(&mut world, &format!("downgrade_low_score_clip({clip})"), "no scheduled publication").await;
        world.log(clip, "tiktok", "pending", &[]).await;
        world.log(clip, "youtube", "retry", &[("scheduled_at", "'2026-11-20T17:00:00.000Z'")]).await;
        refused(&mut world, &format!("downgrade_low_score_clip({clip})"), "no scheduled publication").await;
    }

    async fn force_publish_sends_out_next_whatever_the_window(world) {
        let clip = world.clip(70.0, None).await;
        let later = [("scheduled_at", "'2026-11-21T16:00:00.000Z'")];
        for (platform, status) in [("tiktok", "scheduled"), ("youtube", "retry"), ("instagram", "pending")] {
            let log = world.log(clip, platform, status, &later).await;
            let detail = done(&mut world, &format!("force_publish({log})")).await;
            assert_eq!((&detail["from"], &detail["to"]), (&json!(status), &json!("pending")));
            assert_eq!(status_of(&world, log).await, "pending");
            assert_eq!(time_of(&world, log).await, "", "{platform}: scheduled_at is cleared");
            let job = format!("SELECT kind || ' ' || status FROM jobs WHERE priority = 110 AND id = (SELECT job_id FROM publish_logs WHERE id = {log})");
            assert_eq!(world.text(&job).await, "publish pending");
        }
        assert_eq!(world.number("SELECT COUNT(*) FROM jobs").await, 3);
    }

    async fn force_publish_twice_is_one_job(world) {
        let clip = world.clip(70.0, None).await;
        let log = world.log(clip, "tiktok", "pending", &[]).await;
        let first = done(&mut world, &format!("force_publish({log})")).await;
        let second = done(&mut world, &format!("force_publish({log})")).await;
        assert_eq!(first["job_id"], second["job_id"]);
        assert_eq!(world.number("SELECT COUNT(*) FROM jobs").await, 1);
        let lease = at(&world, 1);
        world.sql(&format!("UPDATE jobs SET status = 'processing', lease_expires_at = {lease}")).await;
        refused(&mut world, &format!("force_publish({log})"), "going out already").await;
    }

    async fn force_publish_is_refused_for_what_cannot_go_out(world) {
        refused(&mut world, "force_publish(99)", "there is no publication 99").await;
        let clip = world.clip(70.0, None).await;
        let log = world.log(clip, "tiktok", "publishing", &[]).await;
        for status in ["publishing", "unknown", "published", "failed", "cancelled"] {
            world.sql(&format!("UPDATE publish_logs SET status = '{status}'")).await;
            refused(&mut world, &format!("force_publish({log})"), &format!("is {status} and cannot be forced out")).await;
        }
        let elsewhere = world.log(clip, "myspace", "pending", &[]).await;
        refused(&mut world, &format!("force_publish({elsewhere})"), "`myspace`").await;
        let columns = [("scheduled_at", "'2026-11-20T17:00:00.000Z'"), ("retry_count", "3")];
        let spent = world.log(clip, "youtube", "retry", &columns).await;
        refused(&mut world, &format!("force_publish({spent})"), "has used its 3 retries").await;
    }

    async fn rebalance_spreads_ages_and_reclaims(world) {
        world.pending_jobs(60, 1).await;
        let old = world.ago(31);
        world.sql(&format!("INSERT INTO jobs (kind, priority, created_at) VALUES ('old', 7, {old})")).await;
        let lapsed = world.ago(1);
        world.sql(&format!("INSERT INTO jobs (kind, status, attempt, max_attempts, lease, lease_expires_at) VALUES ('again', 'processing', 1, 3, 1, {lapsed}), ('spent', 'processing', 3, 3, 3, {lapsed})")).await;
        let held = at(&world, 1);
        world.sql(&format!("INSERT INTO jobs (kind, status, attempt, lease, lease_expires_at) VALUES ('held', 'processing', 1, 1, {held})")).await;
        let ancient = world.ago(121);
        world.sql(&format!("INSERT INTO jobs (kind, created_at) VALUES ('ancient', {ancient})")).await;
        let detail = done(&mut world, "rebalance_queue()").await;
        assert_eq!(detail, json!({ "rescued": 2, "aged": 2, "spread": 12, "failed": 0 }));
        let job = async |kind: &str| world.text(&format!("SELECT status || ' ' || CAST(priority AS TEXT) FROM jobs WHERE kind = '{kind}'")).await;
        assert_eq!(job("old").await, "pending 8");
        assert_eq!(job("again").await, "retry 0");
        assert_eq!(job("spent").await, "failed 0");
        assert_eq!(job("held").await, "processing 0", "its lease still holds");
        assert_eq!(job("ancient").await, "pending 1", "only an emergency fails it");
        assert_eq!(world.number("SELECT COUNT(*) FROM jobs WHERE status = 'pending'").await, 50);
        let now = at(&world, 0);
        let within = at(&world, 11);
        assert_eq!(world.number(&format!("SELECT COUNT(*) FROM jobs WHERE status = 'waiting' AND kind = 'render' AND run_at > {now} AND run_at < {within}")).await, 12);
        assert_eq!(world.number("SELECT COUNT(DISTINCT run_at) FROM jobs WHERE status = 'waiting'").await, 12, "not all at once");
    }

    async fn an_emergency_fails_what_is_over_two_hours_old_and_its_publication_can_be_retried(world) {
        let clip = world.clip(70.0, None).await;
        let (two_hours, more) = (world.ago(120), world.ago(121));
        world.sql(&format!("INSERT INTO jobs (kind, created_at) VALUES ('at the bound', {two_hours}), ('too old', {more}), ('publish', {more})")).await;
        let job = world.number("SELECT MAX(id) FROM jobs").await;
        let log = world.log(clip, "tiktok", "pending", &[("job_id", &job.to_string()), ("pending_at", &more)]).await;
        let detail = done(&mut world, "rebalance_queue(#{ emergency: true })").await;
        assert_eq!(detail["failed"], 2);
        let status = async |kind: &str| world.text(&format!("SELECT status || ': ' || COALESCE(error, '') FROM jobs WHERE kind = '{kind}'")).await;
        assert_eq!(status("at the bound").await, "pending: ");
        assert!(status("too old").await.starts_with("failed: pending for over 2 h"), "{}", status("too old").await);
        assert!(status("publish").await.starts_with("failed"), "kept, not deleted");
        assert_eq!(status_of(&world, log).await, "failed");
        let error = world.text(&format!("SELECT last_error FROM publish_logs WHERE id = {log}")).await;
        assert!(error.contains("emergency"), "{error}");
        let retryable = world.snapshot().await["publish_logs"]["retryable"].clone();
        assert_eq!(retryable[0]["id"], log);
        done(&mut world, &format!("retry_failed_log({log})")).await;
        assert_eq!(status_of(&world, log).await, "scheduled");
    }

    async fn an_action_on_a_platform_that_changed_meanwhile_waits_for_its_time(world) {
        // A refusal is not final: the same rule succeeds once the platform allows it.
        let clip = world.clip(90.0, None).await;
        refused(&mut world, &format!("promote_high_score_clip({clip})"), "no window is open").await;
        world.clock.advance(Duration::from_secs(4 * 3600));
        assert_eq!(done(&mut world, &format!("promote_high_score_clip({clip})")).await["platform"], "tiktok");
    }
}
