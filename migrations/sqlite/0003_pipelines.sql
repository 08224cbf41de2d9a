-- Pipelines: definitions by version, runs and their steps, triggers and their firings.

CREATE TABLE pipelines (
    id TEXT NOT NULL CHECK (typeof(id) = 'text' AND instr(id, char(0)) = 0 AND length(id) BETWEEN 1 AND 200) PRIMARY KEY,
    version INTEGER NOT NULL,
    created_at TEXT NOT NULL CHECK (created_at IS strftime('%Y-%m-%dT%H:%M:%fZ', created_at)),
    updated_at TEXT NOT NULL CHECK (updated_at IS strftime('%Y-%m-%dT%H:%M:%fZ', updated_at))
);

-- A run keeps the version that it began with, so no version is ever changed.
CREATE TABLE pipeline_versions (
    pipeline_id TEXT NOT NULL REFERENCES pipelines (id),
    version INTEGER NOT NULL,
    definition TEXT NOT NULL CHECK (json_valid(definition)),
    hash TEXT NOT NULL,
    created_at TEXT NOT NULL CHECK (created_at IS strftime('%Y-%m-%dT%H:%M:%fZ', created_at)),
    PRIMARY KEY (pipeline_id, version)
);

-- `lease` counts every hand-over to an engine and fences what an earlier one still writes.
CREATE TABLE pipeline_runs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    pipeline_id TEXT NOT NULL,
    version INTEGER NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('pending', 'running', 'waiting', 'paused', 'completed', 'failed', 'cancelled')),
    trigger_kind TEXT NOT NULL CHECK (trigger_kind IN ('manual', 'http', 'cron', 'event', 'pipeline')),
    trigger_id TEXT,
    parent_run_id INTEGER,
    depth INTEGER NOT NULL DEFAULT 0 CHECK (depth BETWEEN 0 AND 16),
    input TEXT NOT NULL CHECK (json_valid(input)),
    output TEXT CHECK (output IS NULL OR json_valid(output)),
    error TEXT,
    -- How often somebody had it tried again.
    retries INTEGER NOT NULL DEFAULT 0,
    lease INTEGER NOT NULL DEFAULT 0,
    lease_expires_at TEXT CHECK (lease_expires_at IS strftime('%Y-%m-%dT%H:%M:%fZ', lease_expires_at)),
    -- The instance that holds the lease, and the engine in it.
    owner TEXT,
    engine TEXT,
    -- When a waiting run goes on by itself.
    wake_at TEXT CHECK (wake_at IS strftime('%Y-%m-%dT%H:%M:%fZ', wake_at)),
    -- What somebody asks of the engine that has the run.
    requested TEXT CHECK (requested IN ('pause', 'cancel')),
    created_at TEXT NOT NULL CHECK (created_at IS strftime('%Y-%m-%dT%H:%M:%fZ', created_at)),
    started_at TEXT CHECK (started_at IS strftime('%Y-%m-%dT%H:%M:%fZ', started_at)),
    finished_at TEXT CHECK (finished_at IS strftime('%Y-%m-%dT%H:%M:%fZ', finished_at)),
    CHECK (status <> 'running' OR lease_expires_at IS NOT NULL)
);
CREATE INDEX pipeline_runs_pending ON pipeline_runs (id) WHERE status = 'pending';
CREATE INDEX pipeline_runs_leased ON pipeline_runs (lease_expires_at) WHERE status = 'running';
CREATE INDEX pipeline_runs_waiting ON pipeline_runs (wake_at) WHERE status = 'waiting';
CREATE INDEX pipeline_runs_paused ON pipeline_runs (id) WHERE status = 'paused';
CREATE INDEX pipeline_runs_of_pipeline ON pipeline_runs (pipeline_id, id);
CREATE INDEX pipeline_runs_failed ON pipeline_runs (finished_at) WHERE status = 'failed';
CREATE INDEX pipeline_runs_finished ON pipeline_runs (finished_at) WHERE finished_at IS NOT NULL;
CREATE INDEX pipeline_runs_of_parent ON pipeline_runs (parent_run_id) WHERE parent_run_id IS NOT NULL;
CREATE INDEX pipeline_runs_of_trigger ON pipeline_runs (trigger_id) WHERE trigger_id IS NOT NULL
    AND status IN ('pending', 'running', 'waiting', 'paused');

-- One row an instance of a step; `item` counts a fan-out's instances and is -1 for the step itself. No foreign key:
-- every write checks the run and its lease in the same statement.
CREATE TABLE pipeline_steps (
    run_id INTEGER NOT NULL,
    step TEXT NOT NULL,
    item INTEGER NOT NULL DEFAULT -1,
    status TEXT NOT NULL CHECK (status IN ('running', 'waiting', 'completed', 'failed', 'skipped', 'cancelled')),
    attempt INTEGER NOT NULL,
    result TEXT CHECK (result IS NULL OR json_valid(result)),
    error TEXT,
    wake_at TEXT CHECK (wake_at IS strftime('%Y-%m-%dT%H:%M:%fZ', wake_at)),
    job_id INTEGER,
    child_run_id INTEGER,
    started_at TEXT NOT NULL CHECK (started_at IS strftime('%Y-%m-%dT%H:%M:%fZ', started_at)),
    finished_at TEXT CHECK (finished_at IS strftime('%Y-%m-%dT%H:%M:%fZ', finished_at)),
    PRIMARY KEY (run_id, step, item)
) WITHOUT ROWID;
CREATE INDEX pipeline_steps_of_job ON pipeline_steps (job_id) WHERE status = 'waiting' AND job_id IS NOT NULL;
CREATE INDEX pipeline_steps_of_child ON pipeline_steps (child_run_id) WHERE status = 'waiting' AND child_run_id IS NOT NULL;

CREATE TABLE triggers (
    id TEXT NOT NULL CHECK (typeof(id) = 'text' AND instr(id, char(0)) = 0 AND length(id) BETWEEN 1 AND 200) PRIMARY KEY,
    pipeline_id TEXT NOT NULL REFERENCES pipelines (id),
    kind TEXT NOT NULL CHECK (kind IN ('cron', 'http', 'event', 'manual')),
    settings TEXT NOT NULL CHECK (json_valid(settings)),
    -- The run's input, whose texts may hold expressions.
    input TEXT NOT NULL CHECK (json_valid(input)),
    overlap TEXT NOT NULL DEFAULT 'queue' CHECK (overlap IN ('skip', 'queue', 'cancel')),
    is_active BOOLEAN NOT NULL DEFAULT FALSE,
    -- A cron trigger's next time.
    due_at TEXT CHECK (due_at IS strftime('%Y-%m-%dT%H:%M:%fZ', due_at)),
    last_fired_at TEXT CHECK (last_fired_at IS strftime('%Y-%m-%dT%H:%M:%fZ', last_fired_at)),
    error TEXT,
    created_at TEXT NOT NULL CHECK (created_at IS strftime('%Y-%m-%dT%H:%M:%fZ', created_at)),
    updated_at TEXT NOT NULL CHECK (updated_at IS strftime('%Y-%m-%dT%H:%M:%fZ', updated_at))
);
CREATE INDEX triggers_due ON triggers (due_at) WHERE is_active AND due_at IS NOT NULL;

-- Once per trigger and occasion over all instances: a due time, an event's id, or a request's own key.
CREATE TABLE trigger_firings (
    trigger_id TEXT NOT NULL,
    occasion TEXT NOT NULL,
    outcome TEXT NOT NULL CHECK (outcome IN ('started', 'skipped', 'missed', 'refused')),
    run_id INTEGER,
    error TEXT,
    fired_at TEXT NOT NULL CHECK (fired_at IS strftime('%Y-%m-%dT%H:%M:%fZ', fired_at)),
    PRIMARY KEY (trigger_id, occasion)
) WITHOUT ROWID;
CREATE INDEX trigger_firings_by_time ON trigger_firings (fired_at);
