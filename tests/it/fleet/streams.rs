//! A stream's life.

use serde_json::{Value, json};

use super::{Socket, TOKEN, address, agent, agent_at, hello, pass, submit, take, until, until_agent, update};
use crate::on_both;

on_both! {
    async fn a_stream_is_submitted_runs_is_muted_described_and_stopped(world) {
        world.start().await;
        let template = json!({ "config": { "streamUrl": "rtmp://example.com/live" }, "restartPolicy": "never" });
        let client = reqwest::Client::new();
        let url = |path: &str| format!("http://{}{path}", address(&world));
        let put = client.put(url("/v1/templates/stream-template-1")).json(&template).send().await.expect("an answer");
        assert_eq!(put.status(), 201);
        let body = json!({ "templateId": "stream-template-1", "idempotencyKey": "unique-job-key", "restartPolicy": "never" });
        let (status, job) = world.post("/v1/jobs", &body).await;
        assert_eq!((status, &job["templateId"], &job["agentId"]), (201, &json!("stream-template-1"), &Value::Null), "{job}");
        let id = job["id"].as_str().expect("an id").to_owned();
        let (status, again) = world.post("/v1/jobs", &body).await;
        assert_eq!((status, &again["id"]), (200, &job["id"]));
        let other = json!({ "templateId": "stream-template-1", "idempotencyKey": "unique-job-key", "restartPolicy": "always" });
        let (status, problem) = world.post("/v1/jobs", &other).await;
        assert_eq!((status, problem["errors"][0]["field"].as_str()), (422, Some("idempotencyKey")));
        world.until("SELECT reason FROM stream_jobs WHERE id = 1", "no agent is connected and free to take jobs").await;
        let (status, problem) = world.poke(&format!("/v1/jobs/{id}/mute")).await;
        assert_eq!(status, 409, "{problem}");

        let mut studio = agent(&world, "studio", 2).await;
        let offer = studio.hear("agent.assign").await;
        assert_eq!(offer["payload"], json!({ "jobId": id, "lease": 1, "templateId": "stream-template-1",
            "config": { "streamUrl": "rtmp://example.com/live" } }));
        until(&world, &id, "ASSIGNED").await;
        studio.say(json!({ "type": "agent.assign.ack", "correlationId": offer["msgId"], "payload": { "jobId": id, "accepted": true } })).await;
        until(&world, &id, "ACCEPTED").await;
        studio.say(update(&id, "STARTING")).await;
        until(&world, &id, "STARTING").await;
        studio.say(update(&id, "RUNNING")).await;
        until(&world, &id, "RUNNING").await;
        let (_, running) = world.get(&format!("/v1/jobs/{id}")).await;
        assert_eq!(running["agentId"], "studio");
        assert!(running["startedAt"].is_string() && running["config"]["streamUrl"].is_string(), "{running}");
        let (_, agents) = world.get("/v1/agents").await;
        assert_eq!((&agents[0]["id"], &agents[0]["state"], &agents[0]["currentJobId"]), (&json!("studio"), &json!("IDLE"), &json!(id)), "a slot is free");

        let (status, _) = world.poke(&format!("/v1/jobs/{id}/mute")).await;
        assert_eq!(status, 202);
        assert_eq!(studio.hear("agent.job.mute").await["payload"]["jobId"], json!(id));
        let metadata = || async { world.get(&format!("/v1/jobs/{id}/metadata")).await.1 };
        assert_eq!(metadata().await, json!({}), "it is muted when the agent says so");
        studio.say(json!({ "type": "agent.job.mute", "payload": { "jobId": id, "success": true } })).await;
        world.until("SELECT COUNT(*) FROM stream_jobs WHERE CAST(metadata AS TEXT) LIKE '%isMuted%true%'", "1").await;
        let changes = json!({ "title": "My Live Stream", "viewers": 1234, "platform": "youtube" });
        let put = client.put(url(&format!("/v1/jobs/{id}/metadata"))).json(&changes).send().await.expect("an answer");
        assert_eq!(put.status(), 200);
        let put = client.put(url(&format!("/v1/jobs/{id}/metadata"))).json(&json!({ "viewers": "many" })).send().await.expect("an answer");
        assert_eq!(put.status(), 422);
        assert_eq!(metadata().await, json!({ "title": "My Live Stream", "viewers": 1234, "platform": "youtube", "isMuted": true }));

        let (status, stopping) = world.poke(&format!("/v1/jobs/{id}/stop")).await;
        assert_eq!((status, &stopping["status"]), (200, &json!("STOPPING")));
        let stop = studio.hear("agent.job.stop").await;
        assert_eq!(stop["payload"], json!({ "jobId": id, "graceMs": 10_000, "lease": 1 }));
        studio.say(update(&id, "STOPPED")).await;
        until(&world, &id, "STOPPED").await;
        let (status, _) = world.poke(&format!("/v1/jobs/{id}/stop")).await;
        assert_eq!(status, 409, "it has ended");
        let (_, events) = world.get(&format!("/v1/jobs/{id}/events")).await;
        let told: Vec<&str> = events["items"].as_array().expect("events").iter().rev().filter_map(|event| event["event_type"].as_str()).collect();
        assert_eq!(told, ["stream.created", "stream.pending", "stream.assigned", "stream.accepted", "stream.starting",
            "stream.running", "stream.stopping", "stream.stopped"]);
        assert_eq!(world.ledger("fleet.stream_stopped").await.len(), 1);
    }

    async fn a_stream_that_its_agent_ends_by_itself_can_still_be_stopped(world) {
        world.config.fleet.heartbeat_timeout_ms = 600_000;
        world.start().await;
        let mut studio = agent(&world, "studio", 1).await;
        let job = submit(&world, json!({ "restartPolicy": "always" })).await;
        take(&mut studio).await;
        until(&world, &job, "RUNNING").await;
        studio.say(update(&job, "STOPPING")).await;
        until(&world, &job, "STOPPING").await;
        // It does not come to the end: whoever wants the job to end has it told, and killed in time.
        assert_eq!(world.poke(&format!("/v1/jobs/{job}/stop")).await.0, 200);
        assert_eq!(studio.hear("agent.job.stop").await["payload"]["jobId"], json!(job));
        pass(&world, 11).await;
        assert_eq!(studio.hear("agent.job.kill").await["payload"]["jobId"], json!(job));
        pass(&world, 6).await;
        until(&world, &job, "FAILED").await;
    }

    async fn no_stream_key_is_shown_in_what_an_agent_says(world) {
        world.start().await;
        let mut studio = agent(&world, "studio", 1).await;
        let config = json!({ "streamUrl": "rtmp://live.example/app/abcd-efgh-ijkl" });
        let job = submit(&world, json!({ "inlineConfig": config })).await;
        let offer = studio.hear("agent.assign").await;
        let refusal = json!({ "jobId": job, "accepted": false, "reason": "abcd-efgh-ijkl is in use" });
        studio.say(json!({ "type": "agent.assign.ack", "correlationId": offer["msgId"], "payload": refusal })).await;
        world.until("SELECT reason FROM stream_jobs", "agent studio refused it: … is in use").await;
        pass(&world, 1).await;
        take(&mut studio).await;
        let error = "rtmp://live.example/app/abcd-efgh-ijkl: Broken pipe";
        studio.say(json!({ "type": "agent.job.update", "payload": { "jobId": job, "status": "FAILED", "error": error } })).await;
        until(&world, &job, "FAILED").await;
        assert_eq!(world.get(&format!("/v1/jobs/{job}")).await.1["error"], "…: Broken pipe");
        let (_, events) = world.get(&format!("/v1/jobs/{job}/events")).await;
        assert!(!events.to_string().contains("abcd-efgh-ijkl"), "{events}");
    }

    async fn what_cannot_be_submitted_is_refused_with_what_to_do(world) {
        world.start_still().await;
        for (body, field) in [
            (json!({}), "templateId"),
            (json!({ "templateId": "a", "inlineConfig": {} }), "inlineConfig"),
            (json!({ "templateId": "nowhere" }), "templateId"),
            (json!({ "inlineConfig": {}, "restartPolicy": "sometimes" }), "restartPolicy"),
            (json!({ "inlineConfig": {}, "priority": 1001 }), "priority"),
            (json!({ "inlineConfig": {}, "idempotencyKey": "" }), "idempotencyKey"),
            (json!({ "inlineConfig": [] }), "inlineConfig"),
            (json!({ "inlineConfig": { "text": "x".repeat(512 * 1024) } }), "inlineConfig"), // agents take 1 MiB
        ] {
            let (status, problem) = world.post("/v1/jobs", &body).await;
            assert_eq!((status, problem["errors"][0]["field"].as_str()), (422, Some(field)), "{body}: {problem}");
        }
        for path in ["/v1/jobs/job-99", "/v1/jobs/99", "/v1/jobs/job-0", "/v1/agents/nobody", "/v1/templates/none", "/v1/jobs/job-99/metadata"] {
            assert_eq!(world.get(path).await.0, 404, "{path}");
        }
        assert_eq!(world.poke("/v1/jobs/job-99/stop").await.0, 404);
        assert_eq!(world.post("/v1/agents/nobody/drain", &json!({ "drain": true })).await.0, 404);
        let job = submit(&world, json!({})).await;
        let (status, canceled) = world.poke(&format!("/v1/jobs/{job}/stop")).await;
        assert_eq!((status, &canceled["status"]), (200, &json!("CANCELED")), "nobody ran it");
        assert_eq!(world.get("/agent").await.0, 426);
        assert_eq!(world.get("/ui").await.0, 426);
    }

    async fn lists_are_bare_arrays_and_say_where_the_rest_is(world) {
        world.start_still().await;
        for _ in 0..3 {
            submit(&world, json!({})).await;
        }
        let all = world.get("/v1/jobs").await.1;
        let ids: Vec<&str> = all.as_array().expect("an array").iter().filter_map(|job| job["id"].as_str()).collect();
        assert_eq!(ids, ["job-1", "job-2", "job-3"], "in the order in which they were made");
        let answer = reqwest::get(format!("http://{}/v1/jobs?limit=2", address(&world))).await.expect("an answer");
        assert_eq!(answer.headers()["link"], "</v1/jobs?limit=2&after=job-2>; rel=\"next\"");
        let rest = world.get("/v1/jobs?limit=2&after=job-2").await.1;
        assert_eq!((rest.as_array().expect("an array").len(), &rest[0]["id"]), (1, &json!("job-3")));
        assert_eq!(world.get("/v1/jobs?limit=0").await.0, 422);
        assert_eq!(world.get("/v1/agents").await.1, json!([]));
    }

    async fn an_offer_that_is_refused_or_not_answered_is_made_elsewhere(world) {
        world.start().await;
        let mut proud = agent(&world, "proud", 4).await; // the most slots: it is asked first
        let mut second = agent(&world, "second", 1).await;
        let job = submit(&world, json!({})).await;
        let offer = proud.hear("agent.assign").await;
        let refusal = json!({ "jobId": job, "accepted": false, "reason": "no disk" });
        proud.say(json!({ "type": "agent.assign.ack", "correlationId": offer["msgId"], "payload": refusal })).await;
        let offer = second.hear("agent.assign").await;
        assert_eq!(offer["payload"]["lease"], 2);

        // No answer: it is taken back, and whoever took it silently is told to end it.
        for _ in 0..2 { // both are alive meanwhile
            pass(&world, 4).await;
            proud.say(json!({ "type": "agent.heartbeat" })).await;
            second.say(json!({ "type": "agent.heartbeat" })).await;
        }
        pass(&world, 3).await;
        assert_eq!(second.hear("agent.job.kill").await["payload"], json!({ "jobId": job, "lease": 2 }));
        pass(&world, 2).await;
        let offer = proud.hear("agent.assign").await;
        assert_eq!(offer["payload"]["lease"], 3, "both have failed; the freest is asked again");
        // A late yes to the old offer is no longer one.
        second.say(json!({ "type": "agent.assign.ack", "payload": { "jobId": job, "accepted": true, "lease": 2 } })).await;
        assert_eq!(second.hear("agent.job.kill").await["payload"], json!({ "jobId": job, "lease": 2 }));
        until(&world, &job, "ASSIGNED").await;
    }

    async fn a_job_that_no_agent_can_run_stands_in_nobodys_way(world) {
        world.config.fleet.heartbeat_timeout_ms = 600_000;
        world.start().await;
        let (mut first, mut second) = (agent(&world, "first", 1).await, agent(&world, "second", 1).await);
        let unfit = submit(&world, json!({})).await;
        let refuse = async |agent: &mut Socket| {
            let offer = agent.hear("agent.assign").await;
            assert_eq!(offer["payload"]["jobId"], json!(unfit));
            let refusal = json!({ "jobId": unfit, "accepted": false, "reason": "the job's config has no `secs`" });
            agent.say(json!({ "type": "agent.assign.ack", "correlationId": offer["msgId"], "payload": refusal })).await;
        };
        refuse(&mut first).await;
        refuse(&mut second).await; // at once: no time has passed
        for _ in 0..4 {
            let why = "SELECT reason FROM stream_jobs WHERE id = 1 AND status = 'PENDING'";
            world.until(&format!("SELECT COUNT(*) FROM ({why}) AS waits WHERE reason LIKE '% refused it: the job''s config has no `secs`'"), "1").await;
            pass(&world, 16).await; // its wait has grown to 16 s at most
            refuse(&mut first).await;
        }
        world.until("SELECT reason FROM stream_jobs WHERE id = 1", "agent first refused it: the job's config has no `secs`").await;
        for name in ["first", "second"] {
            until_agent(&world, name, "IDLE").await;
        }
        // Nobody was put to rest: good jobs have both agents now.
        let good = [submit(&world, json!({})).await, submit(&world, json!({})).await];
        assert_eq!(take(&mut first).await.0, good[0]);
        assert_eq!(take(&mut second).await.0, good[1]);
        until(&world, &good[1], "RUNNING").await;
        world.until("SELECT reason FROM stream_jobs WHERE id = 1", "agent first refused it: the job's config has no `secs`").await;
    }

    async fn a_failed_stream_begins_again_with_backoff_as_its_policy_says(world) {
        world.config.fleet.heartbeat_timeout_ms = 600_000;
        world.start().await;
        let mut studio = agent(&world, "studio", 3).await;
        let failed = |job: &str| json!({ "type": "agent.job.update", "payload": { "jobId": job, "status": "FAILED", "error": "no signal", "exitCode": 1 } });
        let never = submit(&world, json!({ "restartPolicy": "never" })).await;
        take(&mut studio).await;
        until(&world, &never, "RUNNING").await;
        studio.say(failed(&never)).await;
        until(&world, &never, "FAILED").await;
        assert_eq!(world.get(&format!("/v1/jobs/{never}")).await.1["error"], "no signal");

        let again = submit(&world, json!({ "restartPolicy": "onFailure" })).await;
        for lease in 1..=11 {
            let (_, given) = take(&mut studio).await;
            assert_eq!(given, lease);
            until(&world, &again, "RUNNING").await;
            studio.say(failed(&again)).await;
            if lease <= 10 {
                until(&world, &again, "PENDING").await;
                world.clock.advance(std::time::Duration::from_secs(60)); // the longest wait
            }
        }
        until(&world, &again, "FAILED").await;
        let (_, job) = world.get(&format!("/v1/jobs/{again}")).await;
        assert!(job["reason"].as_str().is_some_and(|reason| reason.contains("11 times in a row")), "{job}");

        let always = submit(&world, json!({ "restartPolicy": "always" })).await;
        take(&mut studio).await;
        until(&world, &always, "RUNNING").await;
        studio.say(update(&always, "STOPPED")).await;
        until(&world, &always, "PENDING").await;
        world.clock.advance(std::time::Duration::from_secs(2));
        assert_eq!(take(&mut studio).await.1, 2);
        until(&world, &always, "RUNNING").await;
        world.poke(&format!("/v1/jobs/{always}/stop")).await;
        studio.hear("agent.job.stop").await;
        studio.say(update(&always, "STOPPED")).await;
        until(&world, &always, "STOPPED").await;
    }

    async fn a_stream_that_does_not_end_is_killed_and_one_that_is_not_killed_is_given_up(world) {
        world.config.fleet.heartbeat_timeout_ms = 600_000;
        world.start().await;
        let mut stubborn = agent(&world, "stubborn", 1).await;
        let job = submit(&world, json!({})).await;
        take(&mut stubborn).await;
        until(&world, &job, "RUNNING").await;
        world.poke(&format!("/v1/jobs/{job}/stop")).await;
        stubborn.hear("agent.job.stop").await;
        pass(&world, 9).await;
        assert_eq!(world.number("SELECT COUNT(*) FROM stream_jobs WHERE killed").await, 0, "its grace is ten seconds");
        pass(&world, 2).await;
        assert_eq!(stubborn.hear("agent.job.kill").await["payload"], json!({ "jobId": job, "lease": 1 }));
        assert_eq!(world.text("SELECT status FROM stream_jobs").await, "STOPPING");
        pass(&world, 6).await;
        until(&world, &job, "FAILED").await;
        assert!(world.text("SELECT error FROM stream_jobs").await.contains("did not confirm"));
        until_agent(&world, "stubborn", "IDLE").await;
        // What it still runs, it is told to kill again as soon as it speaks of it.
        stubborn.say(json!({ "type": "agent.heartbeat", "payload": { "activeJobs": [{ "jobId": job, "lease": 1 }] } })).await;
        assert_eq!(stubborn.hear("agent.job.kill").await["payload"]["jobId"], json!(job));
    }

    async fn a_stream_that_is_to_begin_elsewhere_waits_for_the_lease_of_an_agent_that_does_not_confirm_its_end(world) {
        world.start().await;
        let mut deaf = agent(&world, "deaf", 1).await;
        let job = submit(&world, json!({ "restartPolicy": "onFailure" })).await;
        take(&mut deaf).await;
        until(&world, &job, "RUNNING").await;
        let mut other = agent(&world, "other", 1).await;
        world.post("/v1/agents/deaf/drain", &json!({ "drain": true, "deadlineSeconds": 0 })).await;
        until(&world, &job, "STOPPING").await;
        deaf.hear("agent.job.stop").await;
        for _ in 0..8 {
            pass(&world, 1).await;
            deaf.say(json!({ "type": "agent.heartbeat" })).await; // it is heard, and says nothing of the job
            other.say(json!({ "type": "agent.heartbeat" })).await;
        }
        until(&world, &job, "UNKNOWN").await;
        assert_eq!(deaf.closed().await, 4410, "it is cut off");
        assert!(world.text("SELECT reason FROM stream_jobs").await.contains("its lease has to end first"));
        for _ in 0..18 {
            pass(&world, 1).await;
            other.say(json!({ "type": "agent.heartbeat" })).await;
        }
        assert_eq!(world.text("SELECT status FROM stream_jobs").await, "UNKNOWN", "the time-out and the grace are 40 seconds");
        for _ in 0..6 {
            pass(&world, 1).await;
            other.say(json!({ "type": "agent.heartbeat" })).await;
        }
        assert_eq!(take(&mut other).await.0, job);
    }

    async fn repeated_and_reordered_messages_change_nothing(world) {
        world.start().await;
        let mut studio = agent(&world, "studio", 2).await;
        let job = submit(&world, json!({})).await;
        let offer = studio.hear("agent.assign").await;
        let ack = json!({ "type": "agent.assign.ack", "correlationId": offer["msgId"], "payload": { "jobId": job, "accepted": true } });
        studio.say(update(&job, "RUNNING")).await; // overtakes all others
        for late in [ack.clone(), ack.clone(), update(&job, "STARTING"), update(&job, "ACCEPTED"), update(&job, "CREATED")] {
            studio.say(late).await;
        }
        until(&world, &job, "RUNNING").await;
        let once = json!({ "type": "agent.job.update", "msgId": "m-1", "payload": { "jobId": job, "metadata": { "viewers": 1 } } });
        let mut other = once.clone();
        other["payload"]["metadata"]["viewers"] = json!(2);
        for message in [&once, &once, &other] { // the same id is the same message
            studio.say(message.clone()).await;
        }
        studio.say(json!({ "type": "agent.sing", "msgId": 7 })).await;
        let answer = studio.hear("error").await;
        assert_eq!((&answer["payload"]["code"], &answer["correlationId"]), (&json!("unknown-type"), &json!("7")));
        studio.say_text("{").await;
        assert_eq!(studio.hear("error").await["payload"]["code"], "malformed");
        studio.say(json!({ "type": "agent.job.update", "msgId": "m-2", "payload": { "status": "RUNNING" } })).await;
        assert_eq!(studio.hear("error").await["correlationId"], "m-2");
        world.until("SELECT COUNT(*) FROM stream_jobs WHERE CAST(metadata AS TEXT) LIKE '%1%'", "1").await;
        studio.say(update(&job, "STOPPED")).await;
        studio.say(update(&job, "RUNNING")).await;
        studio.say(update(&job, "FAILED")).await;
        assert_eq!(studio.hear("agent.job.kill").await["payload"]["jobId"], json!(job), "it ended, and shall not run");
        until(&world, &job, "STOPPED").await;
        let told = world.number("SELECT COUNT(*) FROM events WHERE subject = 'stream:job-1'").await;
        assert_eq!(told, 4, "created, assigned, running, stopped");
    }

    async fn what_is_said_of_an_earlier_run_changes_nothing_of_the_next(world) {
        world.config.fleet.heartbeat_timeout_ms = 600_000;
        world.start().await;
        let mut studio = agent(&world, "studio", 1).await;
        let job = submit(&world, json!({ "restartPolicy": "onFailure" })).await;
        take(&mut studio).await;
        studio.say(update(&job, "FAILED")).await;
        until(&world, &job, "PENDING").await;
        pass(&world, 2).await;
        assert_eq!(take(&mut studio).await.1, 2);
        until(&world, &job, "RUNNING").await;
        let late = |status: &str| json!({ "type": "agent.job.update", "payload": { "jobId": job, "status": status, "lease": 1 } });
        for status in ["STOPPED", "FAILED", "STARTING"] {
            studio.say(late(status)).await;
        }
        assert_eq!(studio.hear("agent.job.kill").await["payload"], json!({ "jobId": job, "lease": 1 }), "only the run that it names");
        assert_eq!(world.text("SELECT status FROM stream_jobs").await, "RUNNING");
    }

    async fn jobs_go_where_they_fit_and_wait_with_their_reason(world) {
        world.start().await;
        let _plain = agent(&world, "plain", 1).await;
        let mut camera = agent_at(address(&world), "camera", 1, json!([])).await;
        let mut again = hello("camera", 1, json!([]), TOKEN);
        again["payload"]["capabilities"] = json!({ "slots": 1, "maxResolution": "4k", "gpu": true });
        again["msgId"] = json!("again");
        camera.say(again).await; // says anew what it can
        camera.hear("agent.hello.ack").await;
        let wanted = submit(&world, json!({ "requires": { "maxResolution": "2160p", "gpu": true } })).await;
        assert_eq!(take(&mut camera).await.0, wanted);
        let second = submit(&world, json!({ "requires": { "gpu": true } })).await;
        world.until("SELECT reason FROM stream_jobs WHERE id = 2", "every slot of the agents that fit is taken").await;
        submit(&world, json!({ "requires": { "studio": "b" } })).await;
        world.until("SELECT reason FROM stream_jobs WHERE id = 3", "no connected agent has the capability studio: \"b\"").await;
        camera.say(update(&wanted, "STOPPED")).await;
        assert_eq!(take(&mut camera).await.0, second);
    }
}
