//! Values that can be read and still cannot be: each named with what would be taken, all at once.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use chrono_tz::{TZ_VARIANTS, Tz};
use secrecy::ExposeSecret;

use super::fault::Fault;
use super::shape::did_you_mean;
use super::{Auth, Config, ConnectorKind, Platform, Publishing, Sandbox, Webhook};

/// Shorter tokens can be guessed.
const MIN_TOKEN_CHARS: usize = 16;
/// Longest name of a platform or token, as the tables hold it.
const MAX_NAME_CHARS: usize = 100;
const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];

impl Config {
    /// Everything that is impossible; empty when all is well. `action_kinds` are the names that
    /// `governors.budgets` takes: they belong to a floor above.
    pub fn check(&self, action_kinds: &[&str]) -> Vec<Fault> {
        let mut faults = Faults(Vec::new());
        self.check_place(&mut faults);
        self.check_loop(&mut faults, action_kinds);
        self.publishing.check(&mut faults);
        faults.0.extend(self.storage.parse().err().unwrap_or_default());
        if let Err(weak) = super::check_secret_key(self.secret_key.expose_secret()) {
            faults.add("secret_key", weak);
        }
        self.auth.check(&mut faults);
        self.check_bounds(&mut faults);
        check_level(&mut faults, &self.log.level);
        faults.0
    }

    fn check_place(&self, faults: &mut Faults) {
        if !["sqlite:", "postgres://", "postgresql://"].iter().any(|scheme| self.database_url.starts_with(scheme)) {
            faults.add("database_url", "takes sqlite://path/to/file.db or postgres://user@host/database");
        }
        if let Some(folder) = self.rules_dir.as_ref().filter(|folder| !folder.is_dir()) {
            let shown = folder.display().to_string();
            faults.add(
                "rules_dir",
                format!(
                    "`{}` is not a folder; `showrunner rules init DIR` makes one with the built-in rules",
                    shown.escape_debug()
                ),
            );
        }
    }

    fn check_loop(&self, faults: &mut Faults, action_kinds: &[&str]) {
        faults.within("orchestrator.interval_seconds", self.orchestrator.interval_seconds, 1..=3_600);
        let governors = &self.governors;
        faults.within("governors.rule_blast_radius", governors.rule_blast_radius as u64, 1..=10_000);
        faults.within("governors.plan_blast_radius", governors.plan_blast_radius as u64, 1..=10_000);
        faults.within("governors.budget_per_hour", governors.budget_per_hour.into(), 1..=1_000_000);
        faults.within("governors.breaker_failures", governors.breaker_failures.into(), 1..=1_000);
        faults.within("governors.breaker_open_seconds", governors.breaker_open_seconds, 1..=86_400);
        for (kind, budget) in &governors.budgets {
            let key = format!("governors.budgets.{kind}");
            if !action_kinds.contains(&kind.as_str()) {
                let hint = did_you_mean(kind, action_kinds.iter().copied());
                faults.add(&key, format!("there is no such action{hint}"));
            }
            faults.within(&key, (*budget).into(), 0..=1_000_000);
        }
    }

    fn check_bounds(&self, faults: &mut Faults) {
        faults.within("queue.max_concurrency", self.queue.max_concurrency as u64, 1..=1_000);
        faults.within("queue.poll_interval_ms", self.queue.poll_interval_ms, 10..=60_000);
        faults.within("queue.lease_seconds", self.queue.lease_seconds, 5..=3_600);
        faults.within("queue.idempotency_ttl_seconds", self.queue.idempotency_ttl_seconds, 0..=31_536_000);
        faults.within("queue.max_retry_delay_ms", self.queue.max_retry_delay_ms, 0..=31_536_000_000);
        faults.within("pipelines.engines", self.pipelines.engines as u64, 0..=100);
        faults.within("pipelines.lease_seconds", self.pipelines.lease_seconds, 2..=3_600);
        self.check_fleet(faults);
        faults.within("http.body_limit_bytes", self.http.body_limit_bytes as u64, 1_024..=64 << 20);
        faults.within("http.requests_per_second", self.http.requests_per_second.into(), 1..=100_000);
        faults.within("http.request_timeout_ms", self.http.request_timeout_ms, 100..=600_000);
        faults.within("http.drain_timeout_ms", self.http.drain_timeout_ms, 0..=600_000);
        let retention = &self.retention;
        for (key, days) in [
            ("retention.idle_cycles_days", retention.idle_cycles_days),
            ("retention.cycles_days", retention.cycles_days),
            ("retention.jobs_days", retention.jobs_days),
            ("retention.ledger_days", retention.ledger_days),
            ("retention.events_days", retention.events_days),
            ("retention.dead_letters_days", retention.dead_letters_days),
        ] {
            faults.within(key, days.into(), 0..=36_500);
        }
    }
}

impl Config {
    fn check_fleet(&self, faults: &mut Faults) {
        let fleet = &self.fleet;
        let token = fleet.agent_token.expose_secret();
        if !token.is_empty() && token.chars().count() < MIN_TOKEN_CHARS && token != super::DEVELOPMENT_TOKEN {
            faults.add("fleet.agent_token", format!("is shorter than {MIN_TOKEN_CHARS} characters and can be guessed"));
        }
        // Where tokens are set, a proxy on this machine may bring strangers to a door on loopback.
        if token == super::DEVELOPMENT_TOKEN && !(self.host.is_loopback() && self.auth.tokens.is_empty()) {
            let message = "is the one that everybody knows; it is taken only on loopback and where no `auth.tokens` are \
                           set: take a token of your own";
            faults.add("fleet.agent_token", message);
        }
        faults.within("fleet.heartbeat_interval_ms", fleet.heartbeat_interval_ms, 100..=600_000);
        faults.within("fleet.heartbeat_timeout_ms", fleet.heartbeat_timeout_ms, 200..=3_600_000);
        if fleet.heartbeat_timeout_ms < fleet.heartbeat_interval_ms.saturating_mul(2) {
            let message = "is less than twice heartbeat_interval_ms: one late heartbeat would lose an agent";
            faults.add("fleet.heartbeat_timeout_ms", message);
        }
        faults.within("fleet.stop_grace_ms", fleet.stop_grace_ms, 0..=3_600_000);
        faults.within("fleet.kill_after_ms", fleet.kill_after_ms, 100..=3_600_000);
        // Without any an agent would have no lease, and would never end by itself what begins elsewhere.
        faults.within("fleet.reconnect_grace_ms", fleet.reconnect_grace_ms, 100..=3_600_000);
    }
}

impl Publishing {
    fn check(&self, faults: &mut Faults) {
        check_zone(faults, "publishing.time_zone", &self.time_zone);
        if self.platforms.is_empty() {
            faults.add("publishing.platforms", "names no platform; at least one is needed");
        }
        for (name, platform) in &self.platforms {
            platform.check(faults, name);
        }
        faults.within("publishing.call_timeout_ms", self.call_timeout_ms, 100..=600_000);
        faults.within("publishing.catch_up_after_minutes", self.catch_up_after_minutes, 0..=10_080);
        faults.within("publishing.settle_minutes", self.settle_minutes, 1..=10_080);
        if self.settle_minutes.saturating_mul(60_000) < self.call_timeout_ms.saturating_mul(2) {
            let message = "is less than twice call_timeout_ms: a call that still runs could be settled as lost";
            faults.add("publishing.settle_minutes", message);
        }
        faults.within("publishing.max_postponements", self.max_postponements.into(), 0..=100);
        faults.within("publishing.retry_backoff_minutes", self.retry_backoff_minutes, 1..=1_440);
        self.sandbox.check(faults);
        if self.connector == ConnectorKind::Webhook {
            self.webhook.check(faults);
        }
    }
}

impl Platform {
    fn check(&self, faults: &mut Faults, name: &str) {
        let key = |field: &str| format!("publishing.platforms.{name}.{field}");
        let opens = minutes_of_day(&self.opens).filter(|minutes| *minutes < 24 * 60);
        let closes = minutes_of_day(&self.closes);
        if opens.is_none() {
            faults.add(&key("opens"), format!("`{}` is no time; 00:00 to 23:59 is taken", self.opens.escape_debug()));
        }
        if closes.is_none() {
            faults.add(&key("closes"), format!("`{}` is no time; 00:00 to 24:00 is taken", self.closes.escape_debug()));
        }
        if opens.is_some() && opens == closes {
            faults.add(&key("closes"), "is the same as opens; for a window of the whole day take 00:00 and 24:00");
        }
        if let Some(zone) = &self.time_zone {
            check_zone(faults, &key("time_zone"), zone);
        }
        faults.within(&key("spacing_minutes"), self.spacing_minutes, 0..=1_440);
        faults.within(&key("daily_quota"), self.daily_quota.into(), 1..=10_000);
        if !(0..=1_000_000_000).contains(&self.cost_cents) {
            faults.add(&key("cost_cents"), format!("{} is outside 0 to 1000000000", self.cost_cents));
        }
    }
}

impl Sandbox {
    fn check(&self, faults: &mut Faults) {
        for (field, probability) in [
            ("refuse", self.refuse),
            ("throttle", self.throttle),
            ("lose_request", self.lose_request),
            ("lose_answer", self.lose_answer),
        ] {
            if !(0.0..=1.0).contains(&probability) {
                let key = format!("publishing.sandbox.{field}");
                faults.add(&key, format!("{probability} is no probability; 0 to 1 is taken"));
            }
        }
        // They are shares of one draw.
        let together = self.refuse + self.throttle + self.lose_request + self.lose_answer;
        if together > 1.0 + 1e-9 {
            let message =
                format!("refuse, throttle, lose_request and lose_answer come to {together}; at most 1 is taken");
            faults.add("publishing.sandbox", message);
        }
        faults.within("publishing.sandbox.latency_max_ms", self.latency_max_ms, 0..=600_000);
        if self.latency_min_ms > self.latency_max_ms {
            let (low, high) = (self.latency_min_ms, self.latency_max_ms);
            faults.add(
                "publishing.sandbox.latency_min_ms",
                format!("{low} is more than latency_max_ms, which is {high}"),
            );
        }
    }
}

impl Webhook {
    fn check(&self, faults: &mut Faults) {
        for (key, url) in [("publishing.webhook.url", &self.url), ("publishing.webhook.status_url", &self.status_url)] {
            let parsed = reqwest::Url::parse(&url.replace("{key}", "key"));
            if !parsed.is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host()) {
                faults.add(key, "the webhook connector needs a URL here, such as https://publisher.example/publish");
            }
        }
        if !self.status_url.is_empty() && !self.status_url.contains("{key}") {
            faults.add("publishing.webhook.status_url", "must hold {key}, where the idempotency key is put");
        }
        let encoded = self.secret.expose_secret().strip_prefix("whsec_").unwrap_or_default();
        let bytes = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, encoded).unwrap_or_default();
        if !(24..=64).contains(&bytes.len()) {
            faults.add("publishing.webhook.secret", "takes whsec_ and 24 to 64 bytes in base64");
        }
    }
}

impl Auth {
    fn check(&self, faults: &mut Faults) {
        let (mut names, mut secrets) = (BTreeSet::new(), BTreeSet::new());
        for (index, token) in self.tokens.iter().enumerate() {
            let key = |field: &str| format!("auth.tokens.{index}.{field}");
            let length = token.name.chars().count();
            if !(1..=MAX_NAME_CHARS).contains(&length) || token.name.trim() != token.name || !printable(&token.name) {
                faults.add(&key("name"), format!("takes 1 to {MAX_NAME_CHARS} printable characters"));
            } else if !names.insert(token.name.as_str()) {
                faults.add(&key("name"), "is the name of another token too");
            }
            let secret = token.token.expose_secret();
            // A header carries only visible ASCII.
            if secret.len() < MIN_TOKEN_CHARS || !secret.bytes().all(|byte| byte.is_ascii_graphic()) {
                faults.add(&key("token"), format!("takes {MIN_TOKEN_CHARS} or more visible ASCII characters"));
            } else if !secrets.insert(secret) {
                faults.add(&key("token"), "is the same as another one; who came in could not be told");
            }
        }
    }
}

/// What was found so far.
struct Faults(Vec<Fault>);

impl Faults {
    fn add(&mut self, key: &str, message: impl Into<String>) {
        self.0.push(Fault::at(key, message));
    }

    fn within(&mut self, key: &str, value: u64, range: RangeInclusive<u64>) {
        if !range.contains(&value) {
            self.add(key, format!("{value} is outside {} to {}", range.start(), range.end()));
        }
    }
}

fn printable(text: &str) -> bool {
    !text.chars().any(char::is_control)
}

/// `HH:MM` from 00:00 to 24:00 in minutes.
fn minutes_of_day(text: &str) -> Option<u32> {
    let (hours, minutes) = text.split_once(':')?;
    let number = |part: &str| match part.as_bytes() {
        [tens @ b'0'..=b'9', ones @ b'0'..=b'9'] => Some(u32::from(tens - b'0') * 10 + u32::from(ones - b'0')),
        _ => None,
    };
    let (hours, minutes) = (number(hours)?, number(minutes)?);
    (minutes < 60 && hours * 60 + minutes <= 24 * 60).then_some(hours * 60 + minutes)
}

fn check_zone(faults: &mut Faults, key: &str, zone: &str) {
    if zone.parse::<Tz>().is_err() {
        let hint = did_you_mean(zone, TZ_VARIANTS.iter().map(|zone| zone.name()));
        faults.add(key, format!("`{}` is no IANA time zone such as Europe/Madrid{hint}", zone.escape_debug()));
    }
}

/// `info`, or parts such as `showrunner=debug`. A lone word that is no level would silently name a module.
fn check_level(faults: &mut Faults, filter: &str) {
    for part in filter.split(',').map(str::trim) {
        let level = part.rsplit_once('=').map_or(part, |(_, level)| level);
        if !LEVELS.iter().any(|known| known.eq_ignore_ascii_case(level)) {
            let hint = did_you_mean(level, LEVELS);
            let shown = level.escape_debug();
            faults.add("log.level", format!("`{shown}` is no level; one of {} is taken{hint}", LEVELS.join(", ")));
            return;
        }
    }
    if let Err(cause) = tracing_subscriber::EnvFilter::try_new(filter) {
        faults.add("log.level", format!("is no filter such as `info,showrunner=debug`: {cause}"));
    }
}
