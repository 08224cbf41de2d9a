-- The fleet: stream jobs, their templates, and the agents that run them.

-- Every change of the fleet takes this row's lock first, on whichever instance, and counts it on by the rows that it
-- changes: so a row's `revision` says in which order all changes were committed, and a reader misses none.
CREATE TABLE fleet_head (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    revision INTEGER NOT NULL
);
INSERT INTO fleet_head (id, revision) VALUES (1, 0);

CREATE TABLE stream_templates (
    id TEXT NOT NULL CHECK (typeof(id) = 'text' AND instr(id, char(0)) = 0 AND length(id) BETWEEN 1 AND 150) PRIMARY KEY,
    description TEXT,
    config TEXT CHECK (json_valid(config)) NOT NULL,
    requires TEXT CHECK (json_valid(requires)) NOT NULL DEFAULT '{}',
    restart_policy TEXT NOT NULL DEFAULT 'never' CHECK (restart_policy IN ('never', 'onFailure', 'always')),
    priority INTEGER NOT NULL DEFAULT 0,
    created_at TEXT CHECK (created_at IS strftime('%Y-%m-%dT%H:%M:%fZ', created_at)) NOT NULL,
    updated_at TEXT CHECK (updated_at IS strftime('%Y-%m-%dT%H:%M:%fZ', updated_at)) NOT NULL
);

-- `lease` counts every assignment and fences what an earlier agent still says. `due_at` is when something has to be done
-- about the job by itself: an offer lapses, a wait is over, a stop becomes a kill, an agent's grace ends.
CREATE TABLE stream_jobs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    template_id TEXT,
    config TEXT CHECK (json_valid(config)) NOT NULL,
    requires TEXT CHECK (json_valid(requires)) NOT NULL DEFAULT '{}',
    prefers TEXT CHECK (json_valid(prefers)) NOT NULL DEFAULT '[]',
    group_name TEXT,
    priority INTEGER NOT NULL DEFAULT 0,
    restart_policy TEXT NOT NULL DEFAULT 'never' CHECK (restart_policy IN ('never', 'onFailure', 'always')),
    idempotency_key TEXT UNIQUE,
    request_hash TEXT,
    status TEXT NOT NULL DEFAULT 'CREATED' CHECK (status IN ('CREATED', 'PENDING', 'ASSIGNED', 'ACCEPTED', 'STARTING',
        'RUNNING', 'STOPPING', 'STOPPED', 'FAILED', 'CANCELED', 'UNKNOWN')),
    -- Why it waits, in words.
    reason TEXT,
    -- What somebody wants of it: that it ends, or that it begins again, perhaps elsewhere.
    wanted TEXT NOT NULL DEFAULT 'run' CHECK (wanted IN ('run', 'stop', 'restart')),
    agent_id TEXT,
    -- Agents that are tried last: they refused it, or it was moved away from them.
    avoid TEXT CHECK (json_valid(avoid)) NOT NULL DEFAULT '[]',
    lease INTEGER NOT NULL DEFAULT 0,
    due_at TEXT CHECK (due_at IS strftime('%Y-%m-%dT%H:%M:%fZ', due_at)),
    killed BOOLEAN NOT NULL DEFAULT FALSE,
    -- Offers in a row that nobody took, and restarts in a row after errors.
    offers INTEGER NOT NULL DEFAULT 0,
    restarts INTEGER NOT NULL DEFAULT 0,
    metadata TEXT CHECK (json_valid(metadata)) NOT NULL DEFAULT '{}',
    progress TEXT CHECK (progress IS NULL OR json_valid(progress)),
    progressed_at TEXT CHECK (progressed_at IS strftime('%Y-%m-%dT%H:%M:%fZ', progressed_at)),
    error TEXT,
    exit_code INTEGER,
    created_at TEXT CHECK (created_at IS strftime('%Y-%m-%dT%H:%M:%fZ', created_at)) NOT NULL,
    updated_at TEXT CHECK (updated_at IS strftime('%Y-%m-%dT%H:%M:%fZ', updated_at)) NOT NULL,
    assigned_at TEXT CHECK (assigned_at IS strftime('%Y-%m-%dT%H:%M:%fZ', assigned_at)),
    started_at TEXT CHECK (started_at IS strftime('%Y-%m-%dT%H:%M:%fZ', started_at)),
    ended_at TEXT CHECK (ended_at IS strftime('%Y-%m-%dT%H:%M:%fZ', ended_at)),
    version INTEGER NOT NULL DEFAULT 1,
    revision INTEGER NOT NULL,
    CHECK (agent_id IS NOT NULL OR status NOT IN ('ASSIGNED', 'ACCEPTED', 'STARTING', 'RUNNING', 'STOPPING', 'UNKNOWN'))
);
CREATE INDEX stream_jobs_by_revision ON stream_jobs (revision);
CREATE INDEX stream_jobs_live ON stream_jobs (status, created_at) WHERE ended_at IS NULL;
CREATE INDEX stream_jobs_still ON stream_jobs (progressed_at) WHERE status = 'RUNNING';
CREATE INDEX stream_jobs_of_agent ON stream_jobs (agent_id, id)
    WHERE status IN ('ASSIGNED', 'ACCEPTED', 'STARTING', 'RUNNING', 'STOPPING', 'UNKNOWN');
CREATE INDEX stream_jobs_due ON stream_jobs (due_at) WHERE due_at IS NOT NULL;
CREATE INDEX stream_jobs_ended ON stream_jobs (ended_at) WHERE ended_at IS NOT NULL;
CREATE INDEX stream_jobs_failed ON stream_jobs (ended_at) WHERE status = 'FAILED';

-- `connection` counts an agent's connections over all instances, so that the end of an old one does not end a new one.
CREATE TABLE agents (
    id TEXT NOT NULL CHECK (typeof(id) = 'text' AND instr(id, char(0)) = 0 AND length(id) BETWEEN 1 AND 150) PRIMARY KEY,
    name TEXT NOT NULL,
    software_version TEXT,
    state TEXT NOT NULL CHECK (state IN ('OFFLINE', 'IDLE', 'RESERVED', 'STARTING', 'RUNNING', 'STOPPING', 'ERROR', 'DRAINING')),
    capabilities TEXT CHECK (json_valid(capabilities)) NOT NULL DEFAULT '{}',
    slots INTEGER NOT NULL DEFAULT 1 CHECK (slots >= 0),
    drain BOOLEAN NOT NULL DEFAULT FALSE,
    -- `agent`, `loop`, or `operator:<name>`.
    drained_by TEXT,
    drain_deadline_at TEXT CHECK (drain_deadline_at IS strftime('%Y-%m-%dT%H:%M:%fZ', drain_deadline_at)),
    instance TEXT,
    connection INTEGER NOT NULL DEFAULT 0,
    token_id INTEGER,
    -- Its oldest job, and how many it has.
    current_job_id INTEGER,
    busy INTEGER NOT NULL DEFAULT 0,
    -- Jobs in a row that did not come to run on it.
    failed_starts INTEGER NOT NULL DEFAULT 0,
    faulted_until TEXT CHECK (faulted_until IS strftime('%Y-%m-%dT%H:%M:%fZ', faulted_until)),
    -- Connections lost in the running ten minutes.
    drops INTEGER NOT NULL DEFAULT 0,
    drops_since TEXT CHECK (drops_since IS strftime('%Y-%m-%dT%H:%M:%fZ', drops_since)),
    last_seen_at TEXT CHECK (last_seen_at IS strftime('%Y-%m-%dT%H:%M:%fZ', last_seen_at)) NOT NULL,
    connected_at TEXT CHECK (connected_at IS strftime('%Y-%m-%dT%H:%M:%fZ', connected_at)),
    created_at TEXT CHECK (created_at IS strftime('%Y-%m-%dT%H:%M:%fZ', created_at)) NOT NULL,
    updated_at TEXT CHECK (updated_at IS strftime('%Y-%m-%dT%H:%M:%fZ', updated_at)) NOT NULL,
    version INTEGER NOT NULL DEFAULT 1,
    revision INTEGER NOT NULL,
    CHECK ((state = 'OFFLINE') = (instance IS NULL))
);
CREATE INDEX agents_by_revision ON agents (revision);
CREATE INDEX agents_of_instance ON agents (instance) WHERE instance IS NOT NULL;
CREATE INDEX agents_offline ON agents (last_seen_at) WHERE state = 'OFFLINE';
CREATE INDEX agents_draining ON agents (drain_deadline_at) WHERE drain_deadline_at IS NOT NULL;
CREATE INDEX agents_dropping ON agents (drops_since) WHERE drops >= 3;
CREATE INDEX agents_drained ON agents (drained_by) WHERE drained_by IS NOT NULL;
CREATE INDEX agents_faulted ON agents (faulted_until) WHERE faulted_until IS NOT NULL;

-- An agent that ever had a token of its own is not let in by the shared one. Only SHA-256 of a token is kept.
CREATE TABLE agent_tokens (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    agent_id TEXT NOT NULL,
    name TEXT,
    hash TEXT NOT NULL UNIQUE,
    created_by TEXT NOT NULL,
    created_at TEXT CHECK (created_at IS strftime('%Y-%m-%dT%H:%M:%fZ', created_at)) NOT NULL,
    revoked_at TEXT CHECK (revoked_at IS strftime('%Y-%m-%dT%H:%M:%fZ', revoked_at))
);
CREATE INDEX agent_tokens_of_agent ON agent_tokens (agent_id);

-- Commands on their way to the instance that an agent is connected to, which takes them away as it sends them. What is
-- lost with an instance is worked out anew from the jobs when the agent connects again.
CREATE TABLE agent_commands (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    instance TEXT NOT NULL,
    agent_id TEXT NOT NULL,
    connection INTEGER NOT NULL,
    command TEXT CHECK (json_valid(command)) NOT NULL,
    created_at TEXT CHECK (created_at IS strftime('%Y-%m-%dT%H:%M:%fZ', created_at)) NOT NULL
);
CREATE INDEX agent_commands_of_instance ON agent_commands (instance, id);

-- Instances that have agents, and when each last said that it lives.
CREATE TABLE fleet_instances (
    id TEXT NOT NULL PRIMARY KEY,
    seen_at TEXT CHECK (seen_at IS strftime('%Y-%m-%dT%H:%M:%fZ', seen_at)) NOT NULL
);

-- Every transition is an event, told in the transaction that makes it.
CREATE TRIGGER stream_jobs_told_new AFTER INSERT ON stream_jobs BEGIN
    INSERT INTO events (event_type, severity, source, subject, data, created_at)
    VALUES ('stream.' || lower(NEW.status), 'info', 'fleet', 'stream:job-' || NEW.id,
        json_object('status', NEW.status, 'was', NULL, 'agentId', NEW.agent_id, 'lease', NEW.lease, 'templateId', NEW.template_id, 'reason', NEW.reason, 'error', substr(NEW.error, 1, 500)), NEW.updated_at);
END;
CREATE TRIGGER stream_jobs_told AFTER UPDATE OF status ON stream_jobs WHEN OLD.status <> NEW.status BEGIN
    INSERT INTO events (event_type, severity, source, subject, data, created_at)
    VALUES ('stream.' || lower(NEW.status),
        CASE WHEN NEW.status = 'FAILED' THEN 'error' WHEN NEW.status = 'UNKNOWN' OR NEW.status = 'PENDING' AND NEW.error IS NOT NULL THEN 'warning' ELSE 'info' END,
        'fleet', 'stream:job-' || NEW.id,
        json_object('status', NEW.status, 'was', OLD.status, 'agentId', NEW.agent_id, 'lease', NEW.lease, 'templateId', NEW.template_id, 'reason', NEW.reason, 'error', substr(NEW.error, 1, 500)), NEW.updated_at);
END;
CREATE TRIGGER agents_told_new AFTER INSERT ON agents BEGIN
    INSERT INTO events (event_type, severity, source, subject, data, created_at)
    VALUES ('agent.' || lower(NEW.state), 'info', 'fleet', 'agent:' || NEW.id,
        json_object('state', NEW.state, 'was', NULL, 'jobs', NEW.busy, 'drainedBy', NEW.drained_by, 'instance', NEW.instance), NEW.updated_at);
END;
CREATE TRIGGER agents_told AFTER UPDATE OF state ON agents WHEN OLD.state <> NEW.state BEGIN
    INSERT INTO events (event_type, severity, source, subject, data, created_at)
    VALUES ('agent.' || lower(NEW.state),
        CASE WHEN NEW.state = 'ERROR' OR NEW.state = 'OFFLINE' AND NEW.busy > 0 THEN 'warning' ELSE 'info' END,
        'fleet', 'agent:' || NEW.id, json_object('state', NEW.state, 'was', OLD.state, 'jobs', NEW.busy, 'drainedBy', NEW.drained_by, 'instance', NEW.instance), NEW.updated_at);
END;
