-- Work: who runs which task and how, what became of each try, dead letters, queues and their limits.

-- Programs that run tasks. `showrunner` itself needs no row.
CREATE TABLE services (
    id TEXT PRIMARY KEY NOT NULL CHECK (typeof(id) = 'text' AND instr(id, char(0)) = 0 AND length(id) BETWEEN 1 AND 200),
    name TEXT NOT NULL CHECK (typeof(name) = 'text' AND instr(name, char(0)) = 0 AND length(name) BETWEEN 1 AND 200),
    version TEXT CHECK (version IS NULL OR typeof(version) = 'text' AND instr(version, char(0)) = 0 AND length(version) BETWEEN 1 AND 200),
    -- Where its workers are called; none where they pull.
    endpoint TEXT CHECK (endpoint IS NULL OR typeof(endpoint) = 'text' AND instr(endpoint, char(0)) = 0 AND length(endpoint) BETWEEN 1 AND 2000),
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')) CHECK (created_at IS strftime('%Y-%m-%dT%H:%M:%fZ', created_at)),
    updated_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')) CHECK (updated_at IS strftime('%Y-%m-%dT%H:%M:%fZ', updated_at))
);

-- How jobs of a kind are run: tasks.id is jobs.kind. A kind without a row has the defaults and no limits.
CREATE TABLE tasks (
    id TEXT PRIMARY KEY NOT NULL CHECK (typeof(id) = 'text' AND instr(id, char(0)) = 0 AND length(id) BETWEEN 1 AND 200),
    service_id TEXT REFERENCES services (id),
    queue TEXT NOT NULL DEFAULT 'default' CHECK (typeof(queue) = 'text' AND instr(queue, char(0)) = 0 AND length(queue) BETWEEN 1 AND 200),
    priority INTEGER NOT NULL DEFAULT 0 CHECK (typeof(priority) = 'integer' AND priority BETWEEN -1000 AND 1000),
    -- SHA-256 of the task's code in hexadecimal; the version grows by one with each change.
    code_hash TEXT CHECK (code_hash IS NULL OR typeof(code_hash) = 'text' AND instr(code_hash, char(0)) = 0 AND length(code_hash) = 64),
    code_version INTEGER CHECK (code_version IS NULL OR typeof(code_version) = 'integer' AND code_version BETWEEN 1 AND 1000000000),
    -- A running job of the task is lost after twice this without a sign of life.
    heartbeat_interval_ms INTEGER CHECK (heartbeat_interval_ms IS NULL OR typeof(heartbeat_interval_ms) = 'integer' AND heartbeat_interval_ms BETWEEN 10 AND 1800000),
    timeout_ms INTEGER CHECK (timeout_ms IS NULL OR typeof(timeout_ms) = 'integer' AND timeout_ms BETWEEN 1 AND 31536000000),
    max_attempts INTEGER NOT NULL DEFAULT 3 CHECK (typeof(max_attempts) = 'integer' AND max_attempts BETWEEN 1 AND 1000),
    retry_backoff TEXT NOT NULL DEFAULT 'exponential' CHECK (retry_backoff IN ('fixed', 'linear', 'exponential')),
    retry_delay_ms INTEGER NOT NULL DEFAULT 1000 CHECK (typeof(retry_delay_ms) = 'integer' AND retry_delay_ms BETWEEN 0 AND 31536000000),
    -- The part of a wait that chance decides: 0 none, 0.5 its upper half, 1 all of it.
    retry_jitter REAL NOT NULL DEFAULT 0.5 CHECK (typeof(retry_jitter) = 'real' AND retry_jitter >= 0 AND retry_jitter <= 1),
    max_retry_delay_ms INTEGER CHECK (max_retry_delay_ms IS NULL OR typeof(max_retry_delay_ms) = 'integer' AND max_retry_delay_ms BETWEEN 0 AND 31536000000),
    -- Jobs of the task that run at once, in all and with one concurrency key; starts in a period, likewise.
    concurrency_limit INTEGER CHECK (concurrency_limit IS NULL OR typeof(concurrency_limit) = 'integer' AND concurrency_limit BETWEEN 0 AND 1000000),
    key_concurrency_limit INTEGER CHECK (key_concurrency_limit IS NULL OR typeof(key_concurrency_limit) = 'integer' AND key_concurrency_limit BETWEEN 1 AND 1000000),
    rate_limit INTEGER CHECK (rate_limit IS NULL OR typeof(rate_limit) = 'integer' AND rate_limit BETWEEN 1 AND 1000000),
    key_rate_limit INTEGER CHECK (key_rate_limit IS NULL OR typeof(key_rate_limit) = 'integer' AND key_rate_limit BETWEEN 1 AND 1000000),
    rate_period_ms INTEGER NOT NULL DEFAULT 1000 CHECK (typeof(rate_period_ms) = 'integer' AND rate_period_ms BETWEEN 1 AND 86400000),
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')) CHECK (created_at IS strftime('%Y-%m-%dT%H:%M:%fZ', created_at)),
    updated_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')) CHECK (updated_at IS strftime('%Y-%m-%dT%H:%M:%fZ', updated_at))
);
CREATE INDEX tasks_of_service ON tasks (service_id);

CREATE TABLE task_code_history (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    task_id TEXT NOT NULL CHECK (typeof(task_id) = 'text' AND instr(task_id, char(0)) = 0),
    code_version INTEGER NOT NULL CHECK (typeof(code_version) = 'integer'),
    code_hash TEXT NOT NULL CHECK (typeof(code_hash) = 'text' AND instr(code_hash, char(0)) = 0),
    previous_hash TEXT CHECK (previous_hash IS NULL OR typeof(previous_hash) = 'text' AND instr(previous_hash, char(0)) = 0),
    service_id TEXT CHECK (service_id IS NULL OR typeof(service_id) = 'text' AND instr(service_id, char(0)) = 0),
    service_version TEXT CHECK (service_version IS NULL OR typeof(service_version) = 'text' AND instr(service_version, char(0)) = 0),
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')) CHECK (created_at IS strftime('%Y-%m-%dT%H:%M:%fZ', created_at))
);
CREATE UNIQUE INDEX task_code_history_by_task ON task_code_history (task_id, code_version);

-- Queues that were paused or given a limit; a queue needs no row.
CREATE TABLE queues (
    name TEXT PRIMARY KEY NOT NULL CHECK (typeof(name) = 'text' AND instr(name, char(0)) = 0 AND length(name) BETWEEN 1 AND 200),
    paused INTEGER NOT NULL DEFAULT 0 CHECK (paused IN (0, 1)),
    paused_by TEXT CHECK (paused_by IS NULL OR typeof(paused_by) = 'text' AND instr(paused_by, char(0)) = 0),
    paused_at TEXT CHECK (paused_at IS strftime('%Y-%m-%dT%H:%M:%fZ', paused_at)),
    concurrency_limit INTEGER CHECK (concurrency_limit IS NULL OR typeof(concurrency_limit) = 'integer' AND concurrency_limit BETWEEN 0 AND 1000000),
    rate_limit INTEGER CHECK (rate_limit IS NULL OR typeof(rate_limit) = 'integer' AND rate_limit BETWEEN 1 AND 1000000),
    rate_period_ms INTEGER NOT NULL DEFAULT 1000 CHECK (typeof(rate_period_ms) = 'integer' AND rate_period_ms BETWEEN 1 AND 86400000),
    updated_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')) CHECK (updated_at IS strftime('%Y-%m-%dT%H:%M:%fZ', updated_at))
);

-- Starts in the running period of what has a rate limit. scope: queue, task, key (name: the task's).
CREATE TABLE rate_windows (
    scope TEXT NOT NULL CHECK (scope IN ('queue', 'task', 'key')),
    name TEXT NOT NULL CHECK (typeof(name) = 'text' AND instr(name, char(0)) = 0),
    key TEXT NOT NULL DEFAULT '' CHECK (typeof(key) = 'text' AND instr(key, char(0)) = 0),
    began_at TEXT NOT NULL CHECK (began_at IS strftime('%Y-%m-%dT%H:%M:%fZ', began_at)),
    used INTEGER NOT NULL CHECK (typeof(used) = 'integer'),
    PRIMARY KEY (scope, name, key)
);
CREATE INDEX rate_windows_by_time ON rate_windows (began_at);

-- Who runs jobs. `recent_…` counts the ends since recent_since, begun anew every ten minutes.
CREATE TABLE workers (
    id TEXT PRIMARY KEY NOT NULL CHECK (typeof(id) = 'text' AND instr(id, char(0)) = 0 AND length(id) BETWEEN 1 AND 300),
    service_id TEXT CHECK (service_id IS NULL OR typeof(service_id) = 'text' AND instr(service_id, char(0)) = 0),
    -- local: a task of this program; push: called at its endpoint; pull: asks by itself.
    mode TEXT NOT NULL CHECK (mode IN ('local', 'push', 'pull')),
    endpoint TEXT CHECK (endpoint IS NULL OR typeof(endpoint) = 'text' AND instr(endpoint, char(0)) = 0 AND length(endpoint) BETWEEN 1 AND 2000),
    queue TEXT NOT NULL DEFAULT 'default' CHECK (typeof(queue) = 'text' AND instr(queue, char(0)) = 0),
    kinds TEXT NOT NULL DEFAULT '[]' CHECK (json_valid(kinds)),
    capacity INTEGER NOT NULL DEFAULT 1 CHECK (typeof(capacity) = 'integer' AND capacity BETWEEN 0 AND 1000000),
    last_seen_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')) CHECK (last_seen_at IS strftime('%Y-%m-%dT%H:%M:%fZ', last_seen_at)),
    quarantined_until TEXT CHECK (quarantined_until IS strftime('%Y-%m-%dT%H:%M:%fZ', quarantined_until)),
    completed INTEGER NOT NULL DEFAULT 0 CHECK (typeof(completed) = 'integer'),
    failed INTEGER NOT NULL DEFAULT 0 CHECK (typeof(failed) = 'integer'),
    lost INTEGER NOT NULL DEFAULT 0 CHECK (typeof(lost) = 'integer'),
    recent_completed INTEGER NOT NULL DEFAULT 0 CHECK (typeof(recent_completed) = 'integer'),
    recent_failed INTEGER NOT NULL DEFAULT 0 CHECK (typeof(recent_failed) = 'integer'),
    recent_since TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')) CHECK (recent_since IS strftime('%Y-%m-%dT%H:%M:%fZ', recent_since)),
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')) CHECK (created_at IS strftime('%Y-%m-%dT%H:%M:%fZ', created_at))
);
CREATE INDEX workers_by_time ON workers (last_seen_at);

-- Tries that ended otherwise than well. The running try and the one that succeeded are in their job's row; the view
-- job_attempts shows all.
CREATE TABLE ended_attempts (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    job_id INTEGER NOT NULL CHECK (typeof(job_id) = 'integer'),
    attempt INTEGER NOT NULL CHECK (typeof(attempt) = 'integer'),
    lease INTEGER NOT NULL CHECK (typeof(lease) = 'integer'),
    worker TEXT CHECK (typeof(worker) IN ('text', 'null')),
    code_version INTEGER CHECK (code_version IS NULL OR typeof(code_version) = 'integer'),
    started_at TEXT CHECK (started_at IS strftime('%Y-%m-%dT%H:%M:%fZ', started_at)),
    finished_at TEXT NOT NULL CHECK (finished_at IS strftime('%Y-%m-%dT%H:%M:%fZ', finished_at)),
    outcome TEXT NOT NULL CHECK (typeof(outcome) = 'text'),
    error TEXT CHECK (typeof(error) IN ('text', 'null'))
);
CREATE INDEX ended_attempts_of_job ON ended_attempts (job_id, id);

CREATE VIEW job_attempts AS
    SELECT job_id, attempt, lease, worker, code_version, started_at, finished_at,
        CAST(round((julianday(finished_at) - julianday(started_at)) * 86400000) AS INTEGER) AS duration_ms, outcome, error
    FROM ended_attempts
    UNION ALL
    SELECT id, attempt, lease, worker, code_version, started_at, finished_at,
        CAST(round((julianday(finished_at) - julianday(started_at)) * 86400000) AS INTEGER),
        CASE status WHEN 'processing' THEN 'running' ELSE 'completed' END, NULL
    FROM jobs WHERE status IN ('processing', 'completed') AND attempt > 0;

-- Dead letters: jobs that ran out of tries, with all that is needed to understand them and to try again.
CREATE TABLE dlq (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    job_id INTEGER NOT NULL CHECK (typeof(job_id) = 'integer'),
    task_id TEXT NOT NULL CHECK (typeof(task_id) = 'text' AND instr(task_id, char(0)) = 0),
    queue TEXT NOT NULL CHECK (typeof(queue) = 'text' AND instr(queue, char(0)) = 0),
    status TEXT NOT NULL DEFAULT 'open' CHECK (status IN ('open', 'retried')),
    input TEXT NOT NULL CHECK (json_valid(input)),
    input_ref TEXT CHECK (input_ref IS NULL OR typeof(input_ref) = 'text' AND instr(input_ref, char(0)) = 0),
    context TEXT CHECK (context IS NULL OR json_valid(context)),
    error TEXT CHECK (typeof(error) IN ('text', 'null')),
    -- The last hundred tries: attempt, worker, code_version, started_at, finished_at, outcome, error.
    attempts TEXT NOT NULL DEFAULT '[]' CHECK (json_valid(attempts)),
    attempt INTEGER NOT NULL CHECK (typeof(attempt) = 'integer'),
    max_attempts INTEGER NOT NULL CHECK (typeof(max_attempts) = 'integer'),
    code_version INTEGER CHECK (code_version IS NULL OR typeof(code_version) = 'integer'),
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')) CHECK (created_at IS strftime('%Y-%m-%dT%H:%M:%fZ', created_at)),
    retried_at TEXT CHECK (retried_at IS strftime('%Y-%m-%dT%H:%M:%fZ', retried_at)),
    retried_by TEXT CHECK (retried_by IS NULL OR typeof(retried_by) = 'text' AND instr(retried_by, char(0)) = 0)
);
CREATE INDEX dlq_open ON dlq (id) WHERE status = 'open';
CREATE INDEX dlq_of_task ON dlq (task_id, id);
CREATE INDEX dlq_of_job ON dlq (job_id);
CREATE INDEX dlq_by_time ON dlq (created_at);

-- What ends a try otherwise than well, and what leaves a dead letter, is written here, whoever changes the job.
CREATE TRIGGER jobs_ended AFTER UPDATE OF status ON jobs
WHEN (OLD.status = 'processing' AND NEW.status NOT IN ('processing', 'completed') AND NEW.attempt >= OLD.attempt)
    OR (OLD.status <> 'failed' AND NEW.status = 'failed') BEGIN
    INSERT INTO ended_attempts (job_id, attempt, lease, worker, code_version, started_at, finished_at, outcome, error)
        SELECT OLD.id, OLD.attempt, OLD.lease, OLD.worker, OLD.code_version, OLD.started_at, NEW.updated_at,
            coalesce(NEW.outcome, NEW.status), NEW.error
        WHERE OLD.status = 'processing';
    INSERT INTO dlq (job_id, task_id, queue, input, input_ref, context, error, attempts, attempt, max_attempts,
                     code_version, created_at)
        SELECT NEW.id, NEW.kind, NEW.queue, NEW.input, NEW.input_ref, NEW.context, NEW.error,
            (SELECT json_group_array(json_object('attempt', attempt, 'worker', worker, 'code_version', code_version,
                 'started_at', started_at, 'finished_at', finished_at, 'outcome', outcome, 'error', error))
             FROM (SELECT * FROM (SELECT * FROM ended_attempts WHERE job_id = NEW.id ORDER BY id DESC LIMIT 100) ORDER BY id)),
            NEW.attempt, NEW.max_attempts, NEW.code_version, NEW.updated_at
        WHERE NEW.status = 'failed' AND NEW.dead_letter;
END;

CREATE TRIGGER dlq_tally_insert AFTER INSERT ON dlq BEGIN
    INSERT INTO tallies (name, key, n) VALUES ('dlq', NEW.status, 1) ON CONFLICT DO UPDATE SET n = n + 1;
END;
CREATE TRIGGER dlq_tally_delete AFTER DELETE ON dlq BEGIN
    UPDATE tallies SET n = n - 1 WHERE name = 'dlq' AND key = OLD.status;
END;
CREATE TRIGGER dlq_tally_update AFTER UPDATE OF status ON dlq WHEN OLD.status <> NEW.status BEGIN
    UPDATE tallies SET n = n - 1 WHERE name = 'dlq' AND key = OLD.status;
    INSERT INTO tallies (name, key, n) VALUES ('dlq', NEW.status, 1) ON CONFLICT DO UPDATE SET n = n + 1;
END;
