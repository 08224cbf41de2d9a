-- What happened in the planes: transitions of jobs, agents, runs and sessions. Not chained: the ledger holds what the
-- loop and operators did. SQLite has one writer, so ids are in the order of commits and `transaction_id` says nothing.
CREATE TABLE events (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    transaction_id INTEGER NOT NULL DEFAULT 0,
    event_type TEXT NOT NULL CHECK (typeof(event_type) = 'text' AND instr(event_type, char(0)) = 0 AND length(event_type) BETWEEN 1 AND 100),
    severity TEXT NOT NULL DEFAULT 'info' CHECK (severity IN ('info', 'warning', 'error', 'critical')),
    source TEXT NOT NULL CHECK (typeof(source) = 'text' AND instr(source, char(0)) = 0 AND length(source) <= 200),
    subject TEXT CHECK (subject IS NULL OR typeof(subject) = 'text' AND instr(subject, char(0)) = 0 AND length(subject) <= 200),
    data TEXT NOT NULL DEFAULT '{}' CHECK (json_valid(data)),
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ','now')) CHECK (created_at IS strftime('%Y-%m-%dT%H:%M:%fZ', created_at))
);
CREATE INDEX events_in_order ON events (transaction_id, id);
CREATE INDEX events_by_time ON events (created_at);
CREATE INDEX events_by_subject ON events (subject, id) WHERE subject IS NOT NULL;
CREATE INDEX events_severe ON events (transaction_id, id) WHERE severity IN ('error', 'critical');

-- How far something has come through the events: `forgotten` is the last one that retention took away, `ledger` the
-- last severe one that was looked at for the ledger, with what was written there since `window_began_at`.
CREATE TABLE event_marks (
    name TEXT PRIMARY KEY,
    transaction_id INTEGER NOT NULL DEFAULT 0,
    event_id INTEGER NOT NULL DEFAULT 0,
    window_began_at TEXT,
    written INTEGER NOT NULL DEFAULT 0,
    left_out INTEGER NOT NULL DEFAULT 0
);
INSERT INTO event_marks (name) VALUES ('forgotten'), ('ledger');

-- Tokens by which workers registered: none is taken twice while it is valid.
CREATE TABLE used_tokens (
    iss TEXT NOT NULL,
    jti TEXT NOT NULL,
    expires_at TEXT NOT NULL,
    PRIMARY KEY (iss, jti)
);
CREATE INDEX used_tokens_by_time ON used_tokens (expires_at);
