//! What happened is told: once each, in one order on every instance, whoever recorded it and whatever breaks off.

use std::time::Duration;

use serde_json::{Value, json};
use showrunner::app::Mode;
use showrunner::db::{Db, Topic, Tx};
use showrunner::events::{self, Monitor, NewEvent, Received, Severity, Subscription, types};
use showrunner::random::Random;

use crate::on_both;
use crate::support::World;
use crate::support::world::list;

/// Longer than anything here takes, so that only what never comes is waited out.
const PATIENCE: Duration = Duration::from_secs(20);

/// A stream of events as a browser reads it.
struct Stream {
    response: reqwest::Response,
    text: String,
}

/// One message of a stream.
#[derive(Debug, Clone, PartialEq)]
struct Message {
    id: Option<String>,
    event: Option<String>,
    data: Value,
}

impl Stream {
    async fn open(world: &World, query: &str, last_id: Option<&str>) -> Self {
        let response = Self::ask(world, query, last_id).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self { response, text: String::new() }
    }

    async fn ask(world: &World, query: &str, last_id: Option<&str>) -> reqwest::Response {
        let address = world.app.as_ref().and_then(|app| app.address()).expect("a listening service");
        let request = reqwest::Client::new().get(format!("http://{address}/v1/events{query}"));
        let request = request.header("accept", "text/event-stream");
        let request = match last_id {
            Some(id) => request.header("last-event-id", id),
            None => request,
        };
        request.send().await.expect("an answer")
    }

    /// The next message; none when the service ends the stream.
    async fn next(&mut self) -> Option<Message> {
        // Over all of it: heartbeats come by themselves.
        tokio::time::timeout(PATIENCE, self.read()).await.expect("a message in time")
    }

    async fn read(&mut self) -> Option<Message> {
        loop {
            if let Some((block, rest)) = self.text.split_once("\n\n") {
                let field = |name: &str| {
                    let line = block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
                    Some(line.trim_start().to_owned())
                };
                let message = field("data").map(|data| Message {
                    id: field("id"),
                    event: field("event"),
                    data: serde_json::from_str(&data).expect("JSON"),
                });
                self.text = rest.to_owned();
                if let Some(message) = message {
                    return Some(message);
                }
                continue; // a comment
            }
            let chunk = self.response.chunk().await.ok()??;
            self.text.push_str(std::str::from_utf8(&chunk).expect("text"));
        }
    }

    /// The next `count` messages' ids and what their events carry as `n`.
    async fn numbers(&mut self, count: usize) -> Vec<(String, i64)> {
        let mut numbers = Vec::new();
        for _ in 0..count {
            let message = self.next().await.expect("a message");
            assert_eq!(message.event, None, "{message:?}");
            numbers.push((message.id.expect("an id"), message.data["data"]["n"].as_i64().expect("a number")));
        }
        numbers
    }
}

fn numbered(n: i64) -> NewEvent {
    NewEvent::new("test.numbered", "test").subject(format!("number:{n}")).data(json!({ "n": n }))
}

async fn record(db: &Db, events: &[NewEvent]) {
    let mut tx = db.begin().await.expect("a transaction");
    events::record(&mut tx, events).await.expect("recorded");
    tx.commit().await.expect("a commit");
    db.wake(Topic::Events).await;
}

fn monitor(world: &World) -> &Monitor {
    world.app.as_ref().expect("a service").events()
}

fn db(world: &World) -> &Db {
    world.app.as_ref().expect("a service").db()
}

async fn told(subscription: &mut Subscription) -> Received {
    tokio::time::timeout(PATIENCE, subscription.recv()).await.expect("it is told in time").expect("the monitor runs")
}

/// The next events' numbers.
async fn numbers_told(subscription: &mut Subscription, count: usize) -> Vec<i64> {
    let mut numbers = Vec::new();
    for _ in 0..count {
        match told(subscription).await {
            Received::Event(event) => numbers.push(event.data["n"].as_i64().expect("a number")),
            Received::Missed { count, .. } => panic!("{count} events were missed"),
        }
    }
    numbers
}

on_both! {
    async fn what_is_committed_is_told_and_what_is_rolled_back_is_not(world) {
        world.start_still().await;
        let mut subscription = monitor(&world).subscribe();
        let mut stream = Stream::open(&world, "", None).await;
        let mut tx = db(&world).begin().await.expect("a transaction");
        events::record(&mut tx, &[numbered(1)]).await.expect("recorded");
        drop(tx);
        let failed = NewEvent::new(types::WORKFLOW_FAILED, "engine-1").severity(Severity::Error).subject("run:12");
        record(db(&world), &[numbered(2), failed.data(json!({ "n": 3, "text": "o\u{0}\u{1F600}'\"" }))]).await;

        assert_eq!(numbers_told(&mut subscription, 2).await, [2, 3]);
        assert_eq!(stream.next().await.expect("a message").data["data"]["n"], 2);
        let message = stream.next().await.expect("a message").data;
        assert_eq!(message["event_type"], "workflow_failed");
        assert_eq!((message["severity"].as_str(), message["source"].as_str()), (Some("error"), Some("engine-1")));
        assert_eq!(message["data"]["text"], "o\u{0}\u{1F600}'\"");
        assert_eq!(message["created_at"], "2026-11-20T12:00:00.000Z");
        let (status, page) = world.get("/v1/events?limit=1").await;
        assert_eq!((status, &page["items"][0]), (200, &message));
        let (_, page) = world.get(&format!("/v1/events?cursor={}", page["next_cursor"].as_str().expect("a cursor"))).await;
        assert_eq!(list(&page["items"]).len(), 1);
        assert_eq!(page["items"][0]["data"]["n"], 2);
    }

    async fn a_stream_goes_on_where_it_broke_off(world) {
        world.start_still().await;
        let mut stream = Stream::open(&world, "", None).await;
        for n in 0..5 {
            record(db(&world), &[numbered(n)]).await;
        }
        let seen = stream.numbers(3).await;
        drop(stream);
        // More than a subscriber's buffer and more than one look at the table takes.
        record(db(&world), &(5..700).map(numbered).collect::<Vec<_>>()).await;
        let mut stream = Stream::open(&world, "", Some(&seen[2].0)).await;
        let mut rest: Vec<i64> = stream.numbers(697).await.into_iter().map(|(_, n)| n).collect();
        record(db(&world), &[numbered(700)]).await;
        rest.extend(stream.numbers(1).await.into_iter().map(|(_, n)| n));
        assert_eq!(rest, (3..=700).collect::<Vec<_>>());
        // A page's ids serve as well.
        let (_, page) = world.get("/v1/events?type=test.numbered&limit=2").await;
        let id = page["items"][1]["id"].to_string();
        assert_eq!(Stream::open(&world, "", Some(&id)).await.numbers(1).await[0].1, 700, "{page}");
        for refused in ["-7", "x-1", "-"] {
            assert_eq!(Stream::ask(&world, "", Some(refused)).await.status(), 422, "{refused}");
        }
    }

    async fn a_filter_lets_through_what_was_asked_for_on_page_and_stream(world) {
        world.start_still().await;
        let query = "?type=job.*,workflow_failed&severity=warning&subject=job:1";
        let mut stream = Stream::open(&world, query, None).await;
        let event = |event_type, severity, subject: &str, n: i64| {
            NewEvent::new(event_type, "test").severity(severity).subject(subject).data(json!({ "n": n }))
        };
        record(db(&world), &[
            event("job.failed", Severity::Info, "job:1", 1),
            event("job.failed", Severity::Warning, "job:1", 2),
            event("jobs", Severity::Error, "job:1", 3),
            event("workflow_failed", Severity::Critical, "job:12", 4),
            event("job.failed", Severity::Error, "job:2", 5),
            event("run.failed", Severity::Error, "job:1", 6),
            NewEvent::new("job.failed", "test").severity(Severity::Error).data(json!({ "n": 7 })),
            event("job.lost", Severity::Error, "job:1", 8),
        ]).await;
        let streamed: Vec<i64> = stream.numbers(3).await.into_iter().map(|(_, n)| n).collect();
        assert_eq!(streamed, [2, 4, 8]);
        let (_, page) = world.get(&format!("/v1/events{query}")).await;
        let paged: Vec<i64> = list(&page["items"]).iter().filter_map(|event| event["data"]["n"].as_i64()).collect();
        assert_eq!(paged, [8, 4, 2]);
        for refused in ["?severity=bad", "?typ=x", "?limit=0", "?cursor=zzz"] {
            assert_eq!(world.get(&format!("/v1/events{refused}")).await.0, 422, "{refused}");
        }
    }

    async fn what_another_program_or_instance_records_is_told_here_too(world) {
        world.start_still().await;
        let mut subscription = monitor(&world).subscribe();
        world.sql("INSERT INTO events (event_type, source, data) VALUES ('test.foreign', 'another', '{\"n\": 1}')").await;
        // Nobody wakes us: the tail looks by itself, by this world's clock.
        let ticking = async {
            loop {
                world.clock.advance(Duration::from_secs(1));
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::select! {
            numbers = numbers_told(&mut subscription, 1) => assert_eq!(numbers, [1]),
            () = ticking => {}
        }
        let other = world.instance(Mode::Command, 2, None).await;
        let mut there = other.events().subscribe();
        record(other.db(), &[numbered(2)]).await;
        assert_eq!(numbers_told(&mut there, 1).await, [2]);
        if world.is_sqlite() {
            db(&world).wake(Topic::Events).await; // one process serves a file: there is no NOTIFY
        }
        assert_eq!(numbers_told(&mut subscription, 1).await, [2]);
        other.stop().await;
    }

    async fn what_retention_took_away_is_a_gap_that_is_told(world) {
        world.start_still().await;
        let mut stream = Stream::open(&world, "", None).await;
        record(db(&world), &[numbered(1), numbered(2), numbered(3)]).await;
        let seen = stream.numbers(3).await;
        drop(stream);
        world.clock.advance(Duration::from_secs(15 * 24 * 3600));
        record(db(&world), &[numbered(4)]).await;
        showrunner::control::forget_old(db(&world), &world.config.retention).await.expect("retention");
        assert_eq!(world.number("SELECT COUNT(*) FROM events").await, 1);

        let mut stream = Stream::open(&world, "", Some(&seen[0].0)).await;
        let message = stream.next().await.expect("a message");
        assert_eq!((message.event.as_deref(), &message.data), (Some("gap"), &json!({ "reason": "retention" })));
        assert_eq!(stream.numbers(1).await[0].1, 4);
        // Who had seen the last one that is gone has missed nothing.
        assert_eq!(Stream::open(&world, "", Some(&seen[2].0)).await.numbers(1).await[0].1, 4);
        // A place of another database.
        let mut stream = Stream::open(&world, "", Some("999999999999-1")).await;
        assert_eq!(stream.next().await.expect("a message").data["reason"], "unknown_id");
        record(db(&world), &[numbered(5)]).await;
        assert_eq!(stream.numbers(1).await[0].1, 5);
    }

    async fn what_engines_say_is_told_and_not_stored(world) {
        world.start_still().await;
        #[derive(Clone)]
        struct Status(&'static str);
        impl From<Status> for NewEvent {
            fn from(status: Status) -> Self {
                Self::new(types::STATUS_UPDATE, "").data(json!({ "status": status.0 }))
            }
        }
        let mut stream = Stream::open(&world, "", None).await;
        let (outbound, receiver) = tokio::sync::broadcast::channel(100);
        monitor(&world).attach_to_engine("engine-1", receiver);
        let (queue, receiver) = tokio::sync::mpsc::channel(100);
        monitor(&world).attach_to_engine_queue("engine-2", receiver);
        outbound.send(Status("running")).ok().expect("somebody listens");
        let message = stream.next().await.expect("a message");
        assert_eq!(message.id, None);
        assert_eq!((&message.data["source"], &message.data["data"]["status"]), (&json!("engine-1"), &json!("running")));
        queue.send(Status("idle")).await.expect("somebody listens");
        assert_eq!(stream.next().await.expect("a message").data["source"], "engine-2");
        monitor(&world).watch_engines(Duration::from_secs(5), || vec![NewEvent::new(types::ENGINE_STATUS, "engine-3")]);
        assert_eq!(stream.next().await.expect("a message").data["event_type"], "engine_status");
        world.clock.advance(Duration::from_secs(5));
        assert_eq!(stream.next().await.expect("a message").data["event_type"], "engine_status");
        assert_eq!(world.number("SELECT COUNT(*) FROM events").await, 0);
    }

    async fn severe_events_reach_the_ledger_once_and_not_without_bound(world) {
        world.start().await;
        let other = if world.is_sqlite() { None } else { Some(world.instance(Mode::Serve, 2, None).await) };
        let event = |n: i64| numbered(n).severity(if n == 1 { Severity::Critical } else { Severity::Error });
        record(db(&world), &[numbered(0), event(1)]).await;
        record(db(&world), &(2..40).map(event).collect::<Vec<_>>()).await;
        world.until("SELECT left_out FROM event_marks WHERE name = 'ledger'", "29").await;
        let entries = world.ledger("events.").await;
        assert_eq!(entries.len(), 10);
        let first = &entries[9];
        assert_eq!((first["event_type"].as_str(), first["severity"].as_str()), (Some("events.critical"), Some("critical")));
        assert_eq!((first["subject"].as_str(), &first["payload"]["data"]["n"]), (Some("number:1"), &json!(1)));
        // When the minute is over, one entry tells how many there were besides.
        world.until_in_time("SELECT COUNT(*) FROM ledger_entries WHERE event_type = 'events.left_out'", "1").await;
        assert_eq!(world.ledger("events.left_out").await[0]["payload"]["count"], 29);
        // Nothing is written again after a restart.
        if let Some(other) = other {
            other.stop().await;
        }
        world.stop().await;
        world.start().await;
        record(db(&world), &[event(40)]).await;
        world.until("SELECT COUNT(*) FROM ledger_entries WHERE event_type = 'events.error'", "10").await;
        assert_eq!(world.number("SELECT COUNT(*) FROM ledger_entries WHERE event_type = 'events.critical'").await, 1);
        let (_, metrics) = world.get("/metrics").await;
        let metrics = metrics.as_str().expect("text");
        assert!(metrics.contains("showrunner_events_total{type=\"test.numbered\",severity=\"critical\"}"), "{metrics}");
    }

    async fn streams_are_few_and_end_with_the_service(world) {
        world.config.http.drain_timeout_ms = 600_000; // a stream that did not end by itself would hold up the end
        world.start_still().await;
        let mut streams = Vec::new();
        for _ in 0..64 {
            streams.push(Stream::open(&world, "", None).await);
        }
        let refused = Stream::ask(&world, "", None).await;
        assert_eq!((refused.status().as_u16(), refused.headers().contains_key("retry-after")), (503, true));
        drop(streams.pop());
        // The place is free once the service has noticed.
        let again = async {
            loop {
                let response = Stream::ask(&world, "", None).await;
                if response.status() == 200 {
                    break response;
                }
                monitor(&world).publish(numbered(0)); // writing to it is how it notices
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let _again = tokio::time::timeout(PATIENCE, again).await.expect("a place");
        tokio::time::timeout(PATIENCE, world.stop()).await.expect("the service ends");
        let mut last = streams.pop().expect("a stream");
        while last.next().await.is_some() {}
    }
}

/// A transaction on PostgreSQL that a busy machine may leave waiting: ours are ended after five idle seconds.
async fn patient(world: &World) -> Tx {
    let mut tx = world.db.begin().await.expect("a transaction");
    tx.query("SET LOCAL idle_in_transaction_session_timeout = 0").execute().await.expect("it may wait");
    tx
}

/// On PostgreSQL an id is given out before the commit. Transactions that end in any order lose no event, on any
/// instance, and every instance tells all of them in one order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_whose_transactions_end_out_of_order_are_all_told() {
    let Some(mut world) = World::on_postgres().await else { return };
    world.start_still().await;
    let other = world.instance(Mode::Command, 2, None).await;
    let mut here = Stream::open(&world, "", None).await;
    let mut there = other.events().subscribe();

    // The younger transaction takes the smaller id and ends last; then the older one does.
    let mut older = patient(&world).await;
    older.query("UPDATE event_marks SET written = written").execute().await.expect("it has a number");
    let mut younger = patient(&world).await;
    events::record(&mut younger, &[numbered(1)]).await.expect("recorded");
    events::record(&mut older, &[numbered(2)]).await.expect("recorded");
    older.commit().await.expect("a commit");
    db(&world).wake(Topic::Events).await;
    assert_eq!(here.numbers(1).await[0].1, 2, "the older one is told although an id before it is missing");
    younger.commit().await.expect("a commit");
    db(&world).wake(Topic::Events).await;
    assert_eq!(here.numbers(1).await[0].1, 1);
    assert_eq!(numbers_told(&mut there, 2).await, [2, 1]);

    let seed = std::env::var("SHOWRUNNER_TEST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(7);
    println!("seed {seed}");
    let random = Random::seeded(seed);
    let mut open = Vec::new();
    let (mut committed, mut n) = (Vec::new(), 10);
    for _ in 0..200 {
        match random.between(0, 9) {
            0..=3 if open.len() < 4 => open.push((patient(&world).await, Vec::new())),
            0..=6 if !open.is_empty() => {
                let which = random.between(0, open.len() as u64 - 1) as usize;
                let (tx, numbers): &mut (_, Vec<i64>) = &mut open[which];
                events::record(tx, &[numbered(n)]).await.expect("recorded");
                numbers.push(n);
                n += 1;
            }
            7..=8 if !open.is_empty() => {
                let (tx, numbers) = open.swap_remove(random.between(0, open.len() as u64 - 1) as usize);
                tx.commit().await.expect("a commit");
                committed.extend(numbers);
                world.db.wake(Topic::Events).await;
            }
            9 if !open.is_empty() => drop(open.swap_remove(0)),
            _ => {}
        }
    }
    for (tx, numbers) in open {
        tx.commit().await.expect("a commit");
        committed.extend(numbers);
    }
    world.db.wake(Topic::Events).await;
    let told_here = here.numbers(committed.len()).await;
    let order: Vec<i64> = told_here.iter().map(|(_, n)| *n).collect();
    assert_eq!(numbers_told(&mut there, committed.len()).await, order, "both instances tell one order");
    let mut sorted = order.clone();
    sorted.sort_unstable();
    committed.sort_unstable();
    assert_eq!(sorted, committed);
    assert_ne!(order, sorted, "the story has to bring disorder");
    // Wherever a stream broke off, the rest is the rest.
    for (at, (id, _)) in told_here.iter().enumerate().step_by(9) {
        let rest = order[at + 1..].to_vec();
        let mut stream = Stream::open(&world, "", Some(id)).await;
        let told: Vec<i64> = stream.numbers(rest.len()).await.into_iter().map(|(_, n)| n).collect();
        assert_eq!(told, rest);
    }
    other.stop().await;
    world.end().await;
}
