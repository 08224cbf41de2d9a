//! What Prometheus is told. The rooms count where things happen; here is what the names mean.

use std::sync::OnceLock;

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram, gauge};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use crate::control::action::ACTION_KINDS;
use crate::control::orchestrator::LoopStatus;
use crate::control::snapshot::Snapshot;

/// Seconds; from a cycle in a millisecond to a request at its time-out.
const BUCKETS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];

/// The process's recorder, installed at the first call: metrics are one for the whole process by their nature.
pub fn recorder() -> PrometheusHandle {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    HANDLE.get_or_init(install).clone()
}

fn install() -> PrometheusHandle {
    let builder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &BUCKETS)
        .unwrap_or_else(|_| PrometheusBuilder::new()); // only an empty list of buckets is refused
    let recorder = builder.build_recorder();
    let handle = recorder.handle();
    if metrics::set_global_recorder(recorder).is_err() {
        tracing::warn!("another metrics recorder is installed; /metrics stays empty");
    }
    describe();
    handle
}

fn describe() {
    describe_counter!("showrunner_cycles_total", "Cycles that this instance ran, by status and trigger.");
    describe_histogram!("showrunner_cycle_seconds", Unit::Seconds, "How long a cycle took.");
    describe_counter!("showrunner_skipped_ticks_total", "Ticks that were skipped because a cycle took too long.");
    describe_counter!("showrunner_actions_total", "Actions that this instance began, by kind and outcome.");
    describe_counter!("showrunner_http_requests_total", "Requests, by method, route and status.");
    describe_histogram!("showrunner_http_request_seconds", Unit::Seconds, "How long a request took.");
    describe_counter!(
        "showrunner_events_total",
        "Events that this instance was told of, by type and severity; every instance is told of all stored ones."
    );
    describe_counter!(
        "showrunner_events_missed_total",
        "Events that were not counted, because there were too many at once."
    );
    describe_gauge!("showrunner_health_score", "The platform's health, 0 to 100.");
    describe_gauge!("showrunner_unobserved_sections", "Sections of the snapshot that could not be read.");
    describe_gauge!("showrunner_jobs", "Jobs by status.");
    describe_gauge!("showrunner_oldest_pending_job_minutes", "Age of the oldest pending job.");
    describe_gauge!("showrunner_publish_logs", "Publications by status.");
    describe_gauge!("showrunner_loop_running", "1 if the loop is switched on and has a live leader, else 0.");
    describe_gauge!(
        "showrunner_rules_rejected",
        "1 if this instance's rules folder holds a set that was rejected and an older one stays in force, else 0."
    );
    describe_gauge!("showrunner_breaker_open", "1 if the breaker of this action kind is open, else 0.");
}

/// Sets the gauges of the loop itself; `open` are the action kinds whose breakers are open.
pub fn observe_loop(status: &LoopStatus, open: &[String]) {
    let figure = |is: bool| f64::from(u8::from(is));
    gauge!("showrunner_loop_running").set(figure(status.running));
    gauge!("showrunner_rules_rejected").set(figure(!status.rules.rejected_because.is_empty()));
    for kind in ACTION_KINDS {
        gauge!("showrunner_breaker_open", "action" => kind).set(figure(open.iter().any(|open| open == kind)));
    }
}

/// Sets the gauges from what was just seen; a section that could not be read leaves its gauges as they were.
pub fn observe(snapshot: &Snapshot) {
    gauge!("showrunner_health_score").set(snapshot.system.health_score as f64);
    gauge!("showrunner_unobserved_sections").set(snapshot.system.unobserved.len() as f64);
    if let Some(jobs) = &snapshot.jobs {
        let by_status = [
            ("waiting", jobs.waiting),
            ("pending", jobs.pending),
            ("processing", jobs.processing),
            ("retry", jobs.retry),
            ("failed", jobs.failed),
            ("completed", jobs.completed),
        ];
        for (status, count) in by_status {
            gauge!("showrunner_jobs", "status" => status).set(count as f64);
        }
        gauge!("showrunner_oldest_pending_job_minutes").set(jobs.oldest_pending_minutes as f64);
    }
    if let Some(logs) = &snapshot.publish_logs {
        let by_status = [
            ("scheduled", logs.scheduled),
            ("pending", logs.pending),
            ("publishing", logs.publishing),
            ("unknown", logs.unknown),
            ("retry", logs.retry),
            ("failed", logs.failed),
            ("published", logs.published),
        ];
        for (status, count) in by_status {
            gauge!("showrunner_publish_logs", "status" => status).set(count as f64);
        }
    }
}
