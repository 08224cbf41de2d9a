-- The control loop and the publishing plane. Names and shapes: docs/ARCHITECTURE.md, "Tables".
-- Other programs may insert into jobs, publish_logs, campaigns and clips: every column that they may leave out has
-- a default, and every value that would break the service is refused here. SQLite takes any type in any column
-- unless told otherwise, and text that holds a NUL, which PostgreSQL refuses: hence typeof() and instr().

CREATE TABLE campaigns (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL CHECK (typeof(name) = 'text' AND instr(name, char(0)) = 0 AND length(name) BETWEEN 1 AND 200),
    status TEXT NOT NULL DEFAULT 'draft' CHECK (status IN ('draft', 'active', 'paused', 'completed')),
    budget_cents INTEGER NOT NULL CHECK (typeof(budget_cents) = 'integer' AND budget_cents BETWEEN 0 AND 1000000000000000),
    spent_cents INTEGER NOT NULL DEFAULT 0 CHECK (typeof(spent_cents) = 'integer' AND spent_cents BETWEEN 0 AND 1000000000000000000),
    priority INTEGER NOT NULL DEFAULT 0 CHECK (typeof(priority) = 'integer' AND priority BETWEEN -1000 AND 1000),
    starts_at TEXT CHECK (starts_at IS strftime('%Y-%m-%dT%H:%M:%fZ', starts_at)),
    ends_at TEXT CHECK (ends_at IS strftime('%Y-%m-%dT%H:%M:%fZ', ends_at)),
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ','now')) CHECK (created_at IS strftime('%Y-%m-%dT%H:%M:%fZ', created_at)),
    updated_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ','now')) CHECK (updated_at IS strftime('%Y-%m-%dT%H:%M:%fZ', updated_at)),
    CHECK (ends_at IS NULL OR starts_at IS NULL OR ends_at > starts_at)
);
CREATE INDEX campaigns_active ON campaigns (priority DESC, budget_cents DESC, id) WHERE status = 'active';

CREATE TABLE clips (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    title TEXT NOT NULL CHECK (typeof(title) = 'text' AND instr(title, char(0)) = 0 AND length(title) BETWEEN 1 AND 500),
    media_uri TEXT NOT NULL CHECK (typeof(media_uri) = 'text' AND instr(media_uri, char(0)) = 0 AND length(media_uri) BETWEEN 1 AND 2000),
    campaign_id INTEGER REFERENCES campaigns (id),
    visual_score REAL NOT NULL CHECK (visual_score >= 0 AND visual_score <= 100),
    -- ready: no publication yet; scheduled: one that is not cancelled; published: one went out. Kept by trigger.
    status TEXT NOT NULL DEFAULT 'ready' CHECK (status IN ('ready', 'scheduled', 'published', 'archived')),
    priority INTEGER NOT NULL DEFAULT 0 CHECK (typeof(priority) = 'integer' AND priority BETWEEN -1000 AND 1000),
    duration_ms INTEGER CHECK (duration_ms IS NULL OR typeof(duration_ms) = 'integer' AND duration_ms BETWEEN 0 AND 1000000000000000),
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ','now')) CHECK (created_at IS strftime('%Y-%m-%dT%H:%M:%fZ', created_at)),
    updated_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ','now')) CHECK (updated_at IS strftime('%Y-%m-%dT%H:%M:%fZ', updated_at))
);
CREATE INDEX clips_ready ON clips (visual_score DESC, id) WHERE status = 'ready';
CREATE INDEX clips_ready_of_campaign ON clips (campaign_id, visual_score DESC, id) WHERE status = 'ready';
CREATE INDEX clips_scheduled ON clips (visual_score, id) WHERE status = 'scheduled';
CREATE INDEX clips_recent ON clips (created_at, visual_score);

-- The one queue. A larger priority runs first. `lease` counts every hand-over and fences late answers.
CREATE TABLE jobs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL CHECK (typeof(kind) = 'text' AND instr(kind, char(0)) = 0 AND length(kind) BETWEEN 1 AND 200),
    queue TEXT NOT NULL DEFAULT 'default' CHECK (typeof(queue) = 'text' AND instr(queue, char(0)) = 0 AND length(queue) BETWEEN 1 AND 200),
    priority INTEGER NOT NULL DEFAULT 0 CHECK (typeof(priority) = 'integer' AND priority BETWEEN -1000 AND 1000),
    status TEXT NOT NULL DEFAULT 'pending'
        CHECK (status IN ('waiting', 'pending', 'processing', 'retry', 'completed', 'failed', 'cancelled')),
    -- What is too large for a row lies in storage, by reference.
    input TEXT NOT NULL DEFAULT '{}' CHECK (json_valid(input)),
    input_ref TEXT CHECK (input_ref IS NULL OR typeof(input_ref) = 'text' AND instr(input_ref, char(0)) = 0 AND length(input_ref) BETWEEN 1 AND 2000),
    context TEXT CHECK (context IS NULL OR json_valid(context)),
    result TEXT CHECK (result IS NULL OR json_valid(result)),
    result_ref TEXT CHECK (result_ref IS NULL OR typeof(result_ref) = 'text' AND instr(result_ref, char(0)) = 0 AND length(result_ref) BETWEEN 1 AND 2000),
    -- The key holds while the job is live, and until idempotency_until where that is set.
    idempotency_key TEXT CHECK (idempotency_key IS NULL OR typeof(idempotency_key) = 'text' AND instr(idempotency_key, char(0)) = 0 AND length(idempotency_key) BETWEEN 1 AND 300),
    idempotency_until TEXT CHECK (idempotency_until IS strftime('%Y-%m-%dT%H:%M:%fZ', idempotency_until)),
    concurrency_key TEXT CHECK (concurrency_key IS NULL OR typeof(concurrency_key) = 'text' AND instr(concurrency_key, char(0)) = 0 AND length(concurrency_key) BETWEEN 1 AND 300),
    run_at TEXT CHECK (run_at IS strftime('%Y-%m-%dT%H:%M:%fZ', run_at)),
    attempt INTEGER NOT NULL DEFAULT 0 CHECK (typeof(attempt) = 'integer' AND attempt BETWEEN 0 AND 1000000),
    max_attempts INTEGER NOT NULL DEFAULT 3 CHECK (typeof(max_attempts) = 'integer' AND max_attempts BETWEEN 1 AND 1000),
    lease INTEGER NOT NULL DEFAULT 0 CHECK (typeof(lease) = 'integer' AND lease BETWEEN 0 AND 1000000000000000),
    lease_expires_at TEXT CHECK (lease_expires_at IS strftime('%Y-%m-%dT%H:%M:%fZ', lease_expires_at)),
    timeout_ms INTEGER CHECK (timeout_ms IS NULL OR typeof(timeout_ms) = 'integer' AND timeout_ms BETWEEN 1 AND 31536000000),
    -- When the running try is out of time; the lease never reaches past it.
    deadline_at TEXT CHECK (deadline_at IS strftime('%Y-%m-%dT%H:%M:%fZ', deadline_at)),
    worker TEXT CHECK (typeof(worker) IN ('text', 'null')),
    code_version INTEGER CHECK (typeof(code_version) IN ('integer', 'null')),
    progress REAL CHECK (progress IS NULL OR typeof(progress) = 'real' AND progress >= 0 AND progress <= 100),
    progress_message TEXT CHECK (typeof(progress_message) IN ('text', 'null')),
    heartbeat_at TEXT CHECK (heartbeat_at IS strftime('%Y-%m-%dT%H:%M:%fZ', heartbeat_at)),
    cancel_requested_at TEXT CHECK (cancel_requested_at IS strftime('%Y-%m-%dT%H:%M:%fZ', cancel_requested_at)),
    -- How the last try ended: failed, lapsed, timed_out, cancelled.
    outcome TEXT CHECK (typeof(outcome) IN ('text', 'null')),
    error TEXT CHECK (typeof(error) IN ('text', 'null')),
    -- Whether running out of tries leaves a dead letter, and whether somebody is to be woken at the end.
    dead_letter INTEGER NOT NULL DEFAULT 1 CHECK (dead_letter IN (0, 1)),
    awaited INTEGER NOT NULL DEFAULT 0 CHECK (awaited IN (0, 1)),
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ','now')) CHECK (created_at IS strftime('%Y-%m-%dT%H:%M:%fZ', created_at)),
    updated_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ','now')) CHECK (updated_at IS strftime('%Y-%m-%dT%H:%M:%fZ', updated_at)),
    started_at TEXT CHECK (started_at IS strftime('%Y-%m-%dT%H:%M:%fZ', started_at)),
    finished_at TEXT CHECK (finished_at IS strftime('%Y-%m-%dT%H:%M:%fZ', finished_at)),
    CHECK (status NOT IN ('waiting', 'retry') OR run_at IS NOT NULL),
    CHECK (status <> 'processing' OR lease_expires_at IS NOT NULL)
);
-- By kind, so that a worker never walks over jobs that it cannot run; those with a key apart, for the same reason.
CREATE INDEX jobs_claimable ON jobs (queue, kind, priority DESC, id) WHERE status = 'pending' AND concurrency_key IS NULL;
CREATE INDEX jobs_keyed ON jobs (queue, kind, priority DESC, id, concurrency_key)
    WHERE status = 'pending' AND concurrency_key IS NOT NULL;
CREATE INDEX jobs_due ON jobs (run_at) WHERE status IN ('waiting', 'retry');
CREATE INDEX jobs_leased ON jobs (lease_expires_at) WHERE status = 'processing';
CREATE INDEX jobs_oldest_pending ON jobs (coalesce(run_at, created_at)) WHERE status = 'pending';
-- Other programs may finish a job without saying when.
CREATE INDEX jobs_finished ON jobs (coalesce(finished_at, updated_at)) WHERE status IN ('completed', 'failed', 'cancelled');
CREATE INDEX jobs_cancelling ON jobs (worker) WHERE status = 'processing' AND cancel_requested_at IS NOT NULL;
-- One job per key while it is live or remembered: enqueueing twice is enqueueing once.
CREATE UNIQUE INDEX jobs_idempotency ON jobs (idempotency_key)
    WHERE idempotency_key IS NOT NULL
      AND (status IN ('waiting', 'pending', 'processing', 'retry') OR idempotency_until IS NOT NULL);

-- One intended publication of a clip on a platform.
CREATE TABLE publish_logs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    clip_id INTEGER NOT NULL REFERENCES clips (id),
    campaign_id INTEGER REFERENCES campaigns (id),
    platform TEXT NOT NULL CHECK (typeof(platform) = 'text' AND instr(platform, char(0)) = 0 AND length(platform) BETWEEN 1 AND 100),
    status TEXT NOT NULL DEFAULT 'pending' CHECK (status IN
        ('scheduled', 'pending', 'publishing', 'unknown', 'retry', 'published', 'failed', 'cancelled')),
    scheduled_at TEXT CHECK (scheduled_at IS strftime('%Y-%m-%dT%H:%M:%fZ', scheduled_at)),
    retry_count INTEGER NOT NULL DEFAULT 0 CHECK (typeof(retry_count) = 'integer' AND retry_count BETWEEN 0 AND 1000),
    max_retries INTEGER NOT NULL DEFAULT 3 CHECK (typeof(max_retries) = 'integer' AND max_retries BETWEEN 0 AND 100),
    postponed_count INTEGER NOT NULL DEFAULT 0 CHECK (typeof(postponed_count) = 'integer' AND postponed_count BETWEEN 0 AND 1000000),
    priority INTEGER NOT NULL DEFAULT 0 CHECK (typeof(priority) = 'integer' AND priority BETWEEN -1000 AND 1000),
    cost_cents INTEGER NOT NULL DEFAULT 0 CHECK (typeof(cost_cents) = 'integer' AND cost_cents BETWEEN 0 AND 1000000000000),
    -- Goes to the platform with every try, so that a platform that honours it can never post twice.
    idempotency_key TEXT NOT NULL DEFAULT (lower(hex(randomblob(16)))) CHECK (typeof(idempotency_key) = 'text' AND instr(idempotency_key, char(0)) = 0 AND length(idempotency_key) BETWEEN 1 AND 300),
    job_id INTEGER CHECK (job_id IS NULL OR typeof(job_id) = 'integer'),
    external_id TEXT CHECK (typeof(external_id) IN ('text', 'null')),
    external_url TEXT CHECK (typeof(external_url) IN ('text', 'null')),
    last_error TEXT CHECK (typeof(last_error) IN ('text', 'null')),
    pending_at TEXT CHECK (pending_at IS strftime('%Y-%m-%dT%H:%M:%fZ', pending_at)),
    attempted_at TEXT CHECK (attempted_at IS strftime('%Y-%m-%dT%H:%M:%fZ', attempted_at)),
    failed_at TEXT CHECK (failed_at IS strftime('%Y-%m-%dT%H:%M:%fZ', failed_at)),
    published_at TEXT CHECK (published_at IS strftime('%Y-%m-%dT%H:%M:%fZ', published_at)),
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ','now')) CHECK (created_at IS strftime('%Y-%m-%dT%H:%M:%fZ', created_at)),
    updated_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ','now')) CHECK (updated_at IS strftime('%Y-%m-%dT%H:%M:%fZ', updated_at)),
    CHECK (status NOT IN ('scheduled', 'retry') OR scheduled_at IS NOT NULL)
);
CREATE UNIQUE INDEX publish_logs_idempotency ON publish_logs (idempotency_key);
-- A clip is on a platform once: at most one publication that is not failed or cancelled.
CREATE UNIQUE INDEX publish_logs_live ON publish_logs (clip_id, platform) WHERE status NOT IN ('failed', 'cancelled');
CREATE INDEX publish_logs_of_clip ON publish_logs (clip_id, platform, status);
CREATE INDEX publish_logs_due ON publish_logs (scheduled_at, platform) WHERE status IN ('scheduled', 'retry');
-- When a platform's slots are taken.
CREATE INDEX publish_logs_slots ON publish_logs (platform, coalesce(published_at, scheduled_at, pending_at, created_at))
    WHERE status NOT IN ('failed', 'cancelled');
CREATE INDEX publish_logs_due_on_platform ON publish_logs (platform, scheduled_at) WHERE status IN ('scheduled', 'retry');
CREATE INDEX publish_logs_in_flight ON publish_logs (platform, job_id) WHERE status IN ('pending', 'publishing');
CREATE INDEX publish_logs_waiting_on ON publish_logs (job_id) WHERE status = 'pending';
CREATE INDEX publish_logs_attempted ON publish_logs (platform, attempted_at) WHERE attempted_at IS NOT NULL;
CREATE INDEX publish_logs_pending ON publish_logs (coalesce(pending_at, created_at)) WHERE status = 'pending';
CREATE INDEX publish_logs_without_job ON publish_logs (priority DESC, id) WHERE status = 'pending' AND job_id IS NULL;
CREATE INDEX publish_logs_publishing ON publish_logs (id, job_id) WHERE status = 'publishing';
CREATE INDEX publish_logs_unknown ON publish_logs (id) WHERE status = 'unknown';
CREATE INDEX publish_logs_failed ON publish_logs (coalesce(failed_at, updated_at)) WHERE status = 'failed';
CREATE INDEX publish_logs_retryable ON publish_logs (coalesce(failed_at, updated_at) DESC)
    WHERE status = 'failed' AND retry_count < max_retries;
CREATE INDEX publish_logs_of_campaign ON publish_logs (campaign_id)
    WHERE status IN ('scheduled', 'pending', 'publishing', 'unknown', 'retry');

-- The audit chain: each hash covers the entry and the hash before it. Payloads are kept as they were hashed.
CREATE TABLE ledger_entries (
    id INTEGER PRIMARY KEY,
    cycle_id INTEGER,
    event_type TEXT NOT NULL,
    severity TEXT NOT NULL CHECK (severity IN ('info', 'warning', 'error', 'critical')),
    actor TEXT NOT NULL,
    subject TEXT,
    rule TEXT,
    payload TEXT NOT NULL CHECK (json_valid(payload)),
    created_at TEXT NOT NULL CHECK (created_at IS strftime('%Y-%m-%dT%H:%M:%fZ', created_at)),
    prev_hash TEXT NOT NULL,
    hash TEXT NOT NULL
);
CREATE INDEX ledger_entries_by_time ON ledger_entries (created_at);
CREATE INDEX ledger_entries_by_cycle ON ledger_entries (cycle_id, id) WHERE cycle_id IS NOT NULL;
CREATE INDEX ledger_entries_by_subject ON ledger_entries (subject, id) WHERE subject IS NOT NULL;
CREATE INDEX ledger_entries_errors ON ledger_entries (created_at) WHERE severity IN ('error', 'critical');
-- For questions whose answer is rare: what nearly every entry says is left out where it can be.
CREATE INDEX ledger_entries_by_event ON ledger_entries (event_type, id);
CREATE INDEX ledger_entries_by_rule ON ledger_entries (rule, id) WHERE rule IS NOT NULL;
CREATE INDEX ledger_entries_by_actor ON ledger_entries (actor, id) WHERE actor NOT IN ('loop', 'system');
CREATE INDEX ledger_entries_by_severity ON ledger_entries (severity, id) WHERE severity <> 'info';

-- The end of the chain; the row that writers queue for.
CREATE TABLE ledger_head (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    entry_id INTEGER NOT NULL,
    hash TEXT NOT NULL
);
INSERT INTO ledger_head (id, entry_id, hash) VALUES (1, 0, '');

-- What retention took away: the chain goes on from `hash`.
CREATE TABLE ledger_checkpoints (
    through_id INTEGER PRIMARY KEY,
    entries INTEGER NOT NULL,
    hash TEXT NOT NULL,
    actor TEXT NOT NULL,
    created_at TEXT NOT NULL CHECK (created_at IS strftime('%Y-%m-%dT%H:%M:%fZ', created_at))
);

-- The loop's switch, its lease, and requests to run one cycle.
CREATE TABLE loop_switch (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    enabled INTEGER NOT NULL DEFAULT 0 CHECK (enabled IN (0, 1)),
    changed_by TEXT NOT NULL,
    changed_at TEXT NOT NULL CHECK (changed_at IS strftime('%Y-%m-%dT%H:%M:%fZ', changed_at))
);
CREATE TABLE leases (
    name TEXT PRIMARY KEY,
    holder TEXT NOT NULL,
    term INTEGER NOT NULL,
    acquired_at TEXT NOT NULL CHECK (acquired_at IS strftime('%Y-%m-%dT%H:%M:%fZ', acquired_at)),
    expires_at TEXT NOT NULL CHECK (expires_at IS strftime('%Y-%m-%dT%H:%M:%fZ', expires_at))
);
CREATE TABLE cycle_requests (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    requested_by TEXT NOT NULL,
    requested_at TEXT NOT NULL CHECK (requested_at IS strftime('%Y-%m-%dT%H:%M:%fZ', requested_at)),
    taken_at TEXT CHECK (taken_at IS strftime('%Y-%m-%dT%H:%M:%fZ', taken_at)),
    cycle_id INTEGER,
    error TEXT
);
CREATE INDEX cycle_requests_open ON cycle_requests (id) WHERE taken_at IS NULL;

-- The rule sets that cycles ran under: file names and sources, by hash.
CREATE TABLE rule_sets (
    hash TEXT PRIMARY KEY,
    sources TEXT NOT NULL CHECK (json_valid(sources)),
    created_at TEXT NOT NULL CHECK (created_at IS strftime('%Y-%m-%dT%H:%M:%fZ', created_at))
);

-- One row a cycle. `snapshot` is whole where base_id is null, else only the fields that differ from that cycle's.
CREATE TABLE cycles (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    trigger TEXT NOT NULL CHECK (trigger IN ('loop', 'manual')),
    status TEXT NOT NULL CHECK (status IN ('running', 'completed', 'idle', 'error')),
    term INTEGER NOT NULL,
    instance TEXT NOT NULL,
    rules_hash TEXT NOT NULL,
    engine_version TEXT NOT NULL,
    started_at TEXT NOT NULL CHECK (started_at IS strftime('%Y-%m-%dT%H:%M:%fZ', started_at)),
    finished_at TEXT CHECK (finished_at IS strftime('%Y-%m-%dT%H:%M:%fZ', finished_at)),
    observe_us INTEGER NOT NULL DEFAULT 0,
    decide_us INTEGER NOT NULL DEFAULT 0,
    execute_us INTEGER NOT NULL DEFAULT 0,
    skipped_ticks INTEGER NOT NULL DEFAULT 0,
    health_score INTEGER,
    health_status TEXT NOT NULL,
    actions INTEGER NOT NULL DEFAULT 0,
    succeeded INTEGER NOT NULL DEFAULT 0,
    failed INTEGER NOT NULL DEFAULT 0,
    base_id INTEGER,
    snapshot TEXT CHECK (snapshot IS NULL OR json_valid(snapshot)),
    decision TEXT CHECK (decision IS NULL OR json_valid(decision)),
    result TEXT CHECK (result IS NULL OR json_valid(result)),
    error TEXT
);
CREATE INDEX cycles_by_time ON cycles (started_at);
CREATE INDEX cycles_idle ON cycles (started_at) WHERE status = 'idle';
CREATE INDEX cycles_by_base ON cycles (base_id) WHERE base_id IS NOT NULL;
CREATE INDEX cycles_unfinished ON cycles (id) WHERE status = 'running';
CREATE INDEX cycles_eventful ON cycles (id) WHERE status <> 'idle';

-- What the governors remember: when a rule last acted on a target, what each action kind did, and the breakers.
CREATE TABLE rule_cooldowns (
    rule TEXT NOT NULL,
    target TEXT NOT NULL,
    acted_at TEXT NOT NULL CHECK (acted_at IS strftime('%Y-%m-%dT%H:%M:%fZ', acted_at)),
    PRIMARY KEY (rule, target)
);
CREATE TABLE actions (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    cycle_id INTEGER NOT NULL,
    action TEXT NOT NULL,
    target TEXT NOT NULL,
    outcome TEXT NOT NULL CHECK (outcome IN ('executed', 'refused', 'failed')),
    created_at TEXT NOT NULL CHECK (created_at IS strftime('%Y-%m-%dT%H:%M:%fZ', created_at))
);
CREATE INDEX actions_by_kind ON actions (action, created_at);
CREATE INDEX actions_by_time ON actions (created_at);
CREATE TABLE breakers (
    action TEXT PRIMARY KEY,
    consecutive_failures INTEGER NOT NULL DEFAULT 0,
    opened_at TEXT CHECK (opened_at IS strftime('%Y-%m-%dT%H:%M:%fZ', opened_at))
);

-- Answers to requests that carried an Idempotency-Key.
CREATE TABLE idempotency_keys (
    scope TEXT NOT NULL,
    idempotency_key TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    response TEXT NOT NULL CHECK (json_valid(response)),
    created_at TEXT NOT NULL CHECK (created_at IS strftime('%Y-%m-%dT%H:%M:%fZ', created_at)),
    PRIMARY KEY (scope, idempotency_key)
);
CREATE INDEX idempotency_keys_by_time ON idempotency_keys (created_at);

-- What the simulated platform of the sandbox connector has accepted. A real platform would remember this itself.
CREATE TABLE sandbox_posts (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    platform TEXT NOT NULL,
    clip_id INTEGER NOT NULL,
    idempotency_key TEXT NOT NULL,
    external_id TEXT NOT NULL,
    external_url TEXT NOT NULL,
    created_at TEXT NOT NULL CHECK (created_at IS strftime('%Y-%m-%dT%H:%M:%fZ', created_at))
);
CREATE INDEX sandbox_posts_by_key ON sandbox_posts (idempotency_key);
CREATE INDEX sandbox_posts_by_time ON sandbox_posts (platform, created_at);

-- Tallies: how many rows are in which state, so that a cycle never counts history. Kept by trigger, exact at once for
-- every writer. `total` sums a figure beside the count.
--   jobs|publish_logs <status>; campaigns <status> (total: budget); clips.ready_high '' ; clips.ready <campaign or ''>;
--   clips.recent <ten minutes of created_at> (total: score)
CREATE TABLE tallies (
    name TEXT NOT NULL,
    key TEXT NOT NULL,
    n INTEGER NOT NULL,
    total REAL NOT NULL DEFAULT 0,
    PRIMARY KEY (name, key)
) WITHOUT ROWID;

CREATE TRIGGER jobs_tally_insert AFTER INSERT ON jobs BEGIN
    INSERT INTO tallies (name, key, n) VALUES ('jobs', NEW.status, 1) ON CONFLICT DO UPDATE SET n = n + 1;
END;
CREATE TRIGGER jobs_tally_delete AFTER DELETE ON jobs BEGIN
    UPDATE tallies SET n = n - 1 WHERE name = 'jobs' AND key = OLD.status;
END;
CREATE TRIGGER jobs_tally_update AFTER UPDATE OF status ON jobs WHEN OLD.status <> NEW.status BEGIN
    UPDATE tallies SET n = n - 1 WHERE name = 'jobs' AND key = OLD.status;
    INSERT INTO tallies (name, key, n) VALUES ('jobs', NEW.status, 1) ON CONFLICT DO UPDATE SET n = n + 1;
END;

CREATE TRIGGER publish_logs_tally_insert AFTER INSERT ON publish_logs BEGIN
    INSERT INTO tallies (name, key, n) VALUES ('publish_logs', NEW.status, 1) ON CONFLICT DO UPDATE SET n = n + 1;
END;
CREATE TRIGGER publish_logs_tally_delete AFTER DELETE ON publish_logs BEGIN
    UPDATE tallies SET n = n - 1 WHERE name = 'publish_logs' AND key = OLD.status;
END;
CREATE TRIGGER publish_logs_tally_update AFTER UPDATE OF status ON publish_logs WHEN OLD.status <> NEW.status BEGIN
    UPDATE tallies SET n = n - 1 WHERE name = 'publish_logs' AND key = OLD.status;
    INSERT INTO tallies (name, key, n) VALUES ('publish_logs', NEW.status, 1) ON CONFLICT DO UPDATE SET n = n + 1;
END;

CREATE TRIGGER campaigns_tally_insert AFTER INSERT ON campaigns BEGIN
    INSERT INTO tallies (name, key, n, total) VALUES ('campaigns', NEW.status, 1, NEW.budget_cents)
        ON CONFLICT DO UPDATE SET n = n + 1, total = total + NEW.budget_cents;
END;
CREATE TRIGGER campaigns_tally_delete AFTER DELETE ON campaigns BEGIN
    UPDATE tallies SET n = n - 1, total = total - OLD.budget_cents WHERE name = 'campaigns' AND key = OLD.status;
END;
CREATE TRIGGER campaigns_tally_update AFTER UPDATE OF status, budget_cents ON campaigns BEGIN
    UPDATE tallies SET n = n - 1, total = total - OLD.budget_cents WHERE name = 'campaigns' AND key = OLD.status;
    INSERT INTO tallies (name, key, n, total) VALUES ('campaigns', NEW.status, 1, NEW.budget_cents)
        ON CONFLICT DO UPDATE SET n = n + 1, total = total + NEW.budget_cents;
END;

CREATE TRIGGER clips_tally_insert AFTER INSERT ON clips BEGIN
    INSERT INTO tallies (name, key, n, total)
        VALUES ('clips.recent', substr(NEW.created_at, 1, 15), 1, NEW.visual_score)
        ON CONFLICT DO UPDATE SET n = n + 1, total = total + NEW.visual_score;
    INSERT INTO tallies (name, key, n)
        SELECT 'clips.ready', coalesce(NEW.campaign_id, ''), 1 WHERE NEW.status = 'ready'
        ON CONFLICT DO UPDATE SET n = n + 1;
    INSERT INTO tallies (name, key, n)
        SELECT 'clips.ready_high', '', 1 WHERE NEW.status = 'ready' AND NEW.visual_score > 80
        ON CONFLICT DO UPDATE SET n = n + 1;
END;
CREATE TRIGGER clips_tally_delete AFTER DELETE ON clips BEGIN
    UPDATE tallies SET n = n - 1, total = total - OLD.visual_score
        WHERE name = 'clips.recent' AND key = substr(OLD.created_at, 1, 15);
    UPDATE tallies SET n = n - 1
        WHERE name = 'clips.ready' AND key = coalesce(OLD.campaign_id, '') AND OLD.status = 'ready';
    UPDATE tallies SET n = n - 1
        WHERE name = 'clips.ready_high' AND OLD.status = 'ready' AND OLD.visual_score > 80;
END;
CREATE TRIGGER clips_tally_update AFTER UPDATE OF status, visual_score, campaign_id, created_at ON clips BEGIN
    UPDATE tallies SET n = n - 1, total = total - OLD.visual_score
        WHERE name = 'clips.recent' AND key = substr(OLD.created_at, 1, 15);
    UPDATE tallies SET n = n - 1
        WHERE name = 'clips.ready' AND key = coalesce(OLD.campaign_id, '') AND OLD.status = 'ready';
    UPDATE tallies SET n = n - 1
        WHERE name = 'clips.ready_high' AND OLD.status = 'ready' AND OLD.visual_score > 80;
    INSERT INTO tallies (name, key, n, total)
        VALUES ('clips.recent', substr(NEW.created_at, 1, 15), 1, NEW.visual_score)
        ON CONFLICT DO UPDATE SET n = n + 1, total = total + NEW.visual_score;
    INSERT INTO tallies (name, key, n)
        SELECT 'clips.ready', coalesce(NEW.campaign_id, ''), 1 WHERE NEW.status = 'ready'
        ON CONFLICT DO UPDATE SET n = n + 1;
    INSERT INTO tallies (name, key, n)
        SELECT 'clips.ready_high', '', 1 WHERE NEW.status = 'ready' AND NEW.visual_score > 80
        ON CONFLICT DO UPDATE SET n = n + 1;
END;

-- A clip's status follows its publications, whoever writes them.
CREATE TRIGGER clips_follow_new_publication AFTER INSERT ON publish_logs WHEN NEW.status <> 'cancelled' BEGIN
    UPDATE clips SET status = CASE WHEN NEW.status = 'published' THEN 'published' ELSE 'scheduled' END
        WHERE id = NEW.clip_id AND (status = 'ready' OR (status = 'scheduled' AND NEW.status = 'published'));
END;
CREATE TRIGGER clips_follow_publication AFTER UPDATE OF status ON publish_logs WHEN OLD.status <> NEW.status BEGIN
    UPDATE clips SET status = 'published'
        WHERE id = NEW.clip_id AND NEW.status = 'published' AND status IN ('ready', 'scheduled');
    UPDATE clips SET status = 'ready'
        WHERE id = NEW.clip_id AND NEW.status = 'cancelled' AND status = 'scheduled'
        AND NOT EXISTS (SELECT 1 FROM publish_logs WHERE clip_id = NEW.clip_id AND status <> 'cancelled');
    UPDATE clips SET status = 'scheduled'
        WHERE id = NEW.clip_id AND NEW.status <> 'cancelled' AND status = 'ready';
END;

-- INSERT OR REPLACE deletes without firing a delete trigger: it would falsify the tallies and forget what is out. It is
-- refused as the conflict that it is; so is INSERT OR IGNORE, for a trigger cannot tell them apart.
CREATE TRIGGER campaigns_are_not_replaced BEFORE INSERT ON campaigns
WHEN EXISTS (SELECT 1 FROM campaigns WHERE id = NEW.id) BEGIN
    SELECT RAISE(ABORT, 'UNIQUE constraint failed: campaigns.id (change the row by UPDATE)');
END;
CREATE TRIGGER clips_are_not_replaced BEFORE INSERT ON clips
WHEN EXISTS (SELECT 1 FROM clips WHERE id = NEW.id) BEGIN
    SELECT RAISE(ABORT, 'UNIQUE constraint failed: clips.id (change the row by UPDATE)');
END;
CREATE TRIGGER jobs_are_not_replaced BEFORE INSERT ON jobs
WHEN EXISTS (SELECT 1 FROM jobs WHERE id = NEW.id) BEGIN
    SELECT RAISE(ABORT, 'UNIQUE constraint failed: jobs.id (change the row by UPDATE)');
END;
-- A job under a live key cannot be refused here: enqueueing twice is enqueueing once, by ON CONFLICT DO NOTHING. So
-- the one in the way is noted, and leaves the tally when it turns out to have been replaced.
CREATE TABLE jobs_in_the_way (id INTEGER PRIMARY KEY, status TEXT NOT NULL);
CREATE TRIGGER jobs_note_what_is_in_the_way BEFORE INSERT ON jobs
WHEN NEW.idempotency_key IS NOT NULL
    AND (NEW.status IN ('waiting', 'pending', 'processing', 'retry') OR NEW.idempotency_until IS NOT NULL) BEGIN
    DELETE FROM jobs_in_the_way;
    INSERT INTO jobs_in_the_way (id, status)
        SELECT id, status FROM jobs WHERE idempotency_key = NEW.idempotency_key
        AND (status IN ('waiting', 'pending', 'processing', 'retry') OR idempotency_until IS NOT NULL);
END;
CREATE TRIGGER jobs_tally_what_was_replaced AFTER INSERT ON jobs
WHEN NEW.idempotency_key IS NOT NULL
    AND (NEW.status IN ('waiting', 'pending', 'processing', 'retry') OR NEW.idempotency_until IS NOT NULL) BEGIN
    UPDATE tallies SET n = n - 1
        WHERE name = 'jobs' AND key IN (SELECT status FROM jobs_in_the_way WHERE id NOT IN (SELECT id FROM jobs));
END;
CREATE TRIGGER publish_logs_are_not_replaced BEFORE INSERT ON publish_logs
WHEN EXISTS (SELECT 1 FROM publish_logs WHERE id = NEW.id OR idempotency_key = NEW.idempotency_key) BEGIN
    SELECT RAISE(ABORT, 'UNIQUE constraint failed: publish_logs.id or idempotency_key (change the row by UPDATE)');
END;
CREATE TRIGGER publish_logs_live_are_not_replaced BEFORE INSERT ON publish_logs
WHEN NEW.status NOT IN ('failed', 'cancelled') AND EXISTS (
    SELECT 1 FROM publish_logs
    WHERE clip_id = NEW.clip_id AND platform = NEW.platform AND status NOT IN ('failed', 'cancelled')) BEGIN
    SELECT RAISE(ABORT, 'UNIQUE constraint failed: publish_logs.clip_id, publish_logs.platform (the clip has a publication there)');
END;
-- UPDATE OR REPLACE deletes in the same way, where a row comes to stand in another's place.
CREATE TRIGGER campaigns_keep_their_id BEFORE UPDATE OF id ON campaigns WHEN NEW.id <> OLD.id BEGIN
    SELECT RAISE(ABORT, 'campaigns.id never changes');
END;
CREATE TRIGGER clips_keep_their_id BEFORE UPDATE OF id ON clips WHEN NEW.id <> OLD.id BEGIN
    SELECT RAISE(ABORT, 'clips.id never changes');
END;
CREATE TRIGGER jobs_keep_their_id BEFORE UPDATE OF id ON jobs WHEN NEW.id <> OLD.id BEGIN
    SELECT RAISE(ABORT, 'jobs.id never changes');
END;
CREATE TRIGGER publish_logs_keep_their_id BEFORE UPDATE OF id ON publish_logs WHEN NEW.id <> OLD.id BEGIN
    SELECT RAISE(ABORT, 'publish_logs.id never changes');
END;
CREATE TRIGGER jobs_are_not_replaced_by_change BEFORE UPDATE OF idempotency_key, idempotency_until, status ON jobs
WHEN NEW.idempotency_key IS NOT NULL
    AND (NEW.status IN ('waiting', 'pending', 'processing', 'retry') OR NEW.idempotency_until IS NOT NULL)
    AND NOT (NEW.idempotency_key IS OLD.idempotency_key
             AND (OLD.status IN ('waiting', 'pending', 'processing', 'retry') OR OLD.idempotency_until IS NOT NULL))
    AND EXISTS (
        SELECT 1 FROM jobs WHERE idempotency_key = NEW.idempotency_key AND id <> OLD.id
        AND (status IN ('waiting', 'pending', 'processing', 'retry') OR idempotency_until IS NOT NULL)) BEGIN
    SELECT RAISE(ABORT, 'UNIQUE constraint failed: jobs.idempotency_key (another job has the key)');
END;
CREATE TRIGGER publish_logs_are_not_replaced_by_change BEFORE UPDATE OF idempotency_key ON publish_logs
WHEN EXISTS (SELECT 1 FROM publish_logs WHERE idempotency_key = NEW.idempotency_key AND id <> OLD.id) BEGIN
    SELECT RAISE(ABORT, 'UNIQUE constraint failed: publish_logs.idempotency_key (another publication has the key)');
END;
CREATE TRIGGER publish_logs_live_are_not_replaced_by_change BEFORE UPDATE OF clip_id, platform, status ON publish_logs
WHEN NEW.status NOT IN ('failed', 'cancelled')
    AND NOT (NEW.clip_id = OLD.clip_id AND NEW.platform = OLD.platform AND OLD.status NOT IN ('failed', 'cancelled'))
    AND EXISTS (
        SELECT 1 FROM publish_logs WHERE clip_id = NEW.clip_id AND platform = NEW.platform AND id <> OLD.id
        AND status NOT IN ('failed', 'cancelled')) BEGIN
    SELECT RAISE(ABORT, 'UNIQUE constraint failed: publish_logs.clip_id, publish_logs.platform (the clip has a publication there)');
END;

CREATE TRIGGER ledger_entries_are_not_changed BEFORE UPDATE ON ledger_entries BEGIN
    SELECT RAISE(ABORT, 'the ledger is append-only: entries are never changed');
END;
CREATE TRIGGER ledger_entries_are_not_deleted BEFORE DELETE ON ledger_entries
WHEN NOT EXISTS (SELECT 1 FROM ledger_checkpoints WHERE through_id >= OLD.id) BEGIN
    SELECT RAISE(ABORT, 'the ledger is append-only: entries go only by `showrunner ledger prune`, behind a checkpoint');
END;
-- INSERT OR REPLACE deletes without firing the trigger above.
CREATE TRIGGER ledger_entries_are_not_replaced BEFORE INSERT ON ledger_entries
WHEN EXISTS (SELECT 1 FROM ledger_entries WHERE id = NEW.id) BEGIN
    SELECT RAISE(ABORT, 'the ledger is append-only: entries are never replaced');
END;
CREATE TRIGGER ledger_checkpoints_are_not_replaced BEFORE INSERT ON ledger_checkpoints
WHEN EXISTS (SELECT 1 FROM ledger_checkpoints WHERE through_id = NEW.through_id) BEGIN
    SELECT RAISE(ABORT, 'checkpoints are never replaced');
END;
CREATE TRIGGER ledger_checkpoints_are_not_changed BEFORE UPDATE ON ledger_checkpoints BEGIN
    SELECT RAISE(ABORT, 'checkpoints are never changed');
END;
CREATE TRIGGER ledger_checkpoints_are_not_deleted BEFORE DELETE ON ledger_checkpoints BEGIN
    SELECT RAISE(ABORT, 'checkpoints are never deleted');
END;
