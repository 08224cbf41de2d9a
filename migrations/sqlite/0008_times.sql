-- Days and hours that no calendar has (2026-02-31, 24:00) are refused where other programs may write: SQLite before 3.46
-- takes them for times, and newer ones refuse what copies them. Rows that hold some already are counted on, as SQLite
-- counts. Only times of the last days of a month, and of the hour 24, are counted: the others' text shows that they are sound.

UPDATE campaigns SET starts_at = strftime('%Y-%m-%dT%H:%M:%fZ', starts_at, '+0 days'),
    -- What no longer ends after it begins ends as soon as it may.
    ends_at = CASE WHEN strftime('%Y-%m-%dT%H:%M:%fZ', ends_at, '+0 days') <= strftime('%Y-%m-%dT%H:%M:%fZ', starts_at, '+0 days')
        THEN strftime('%Y-%m-%dT%H:%M:%fZ', starts_at, '+0.001 seconds')
        ELSE strftime('%Y-%m-%dT%H:%M:%fZ', ends_at, '+0 days') END,
    created_at = strftime('%Y-%m-%dT%H:%M:%fZ', created_at, '+0 days'),
    updated_at = strftime('%Y-%m-%dT%H:%M:%fZ', updated_at, '+0 days')
WHERE (starts_at GLOB '*-[23][019]T*'
    OR starts_at GLOB '*T24:*'
    OR ends_at GLOB '*-[23][019]T*'
    OR ends_at GLOB '*T24:*'
    OR created_at GLOB '*-[23][019]T*'
    OR created_at GLOB '*T24:*'
    OR updated_at GLOB '*-[23][019]T*'
    OR updated_at GLOB '*T24:*')
    AND (strftime('%Y-%m-%dT%H:%M:%fZ', starts_at, '+0 days') IS NOT starts_at
        OR strftime('%Y-%m-%dT%H:%M:%fZ', ends_at, '+0 days') IS NOT ends_at
        OR strftime('%Y-%m-%dT%H:%M:%fZ', created_at, '+0 days') IS NOT created_at
        OR strftime('%Y-%m-%dT%H:%M:%fZ', updated_at, '+0 days') IS NOT updated_at);

CREATE TRIGGER campaigns_time_of_new BEFORE INSERT ON campaigns
WHEN (coalesce(NEW.starts_at, '') || coalesce(NEW.ends_at, '') || coalesce(NEW.created_at, '')
    || coalesce(NEW.updated_at, '')) GLOB '*-[23][019]T*'
    OR (coalesce(NEW.starts_at, '') || coalesce(NEW.ends_at, '') || coalesce(NEW.created_at, '')
    || coalesce(NEW.updated_at, '')) GLOB '*T24:*' BEGIN
    SELECT RAISE(ABORT, 'campaigns: a day or hour that no calendar has')
    WHERE strftime('%Y-%m-%dT%H:%M:%fZ', NEW.starts_at, '+0 days') IS NOT NEW.starts_at
        OR strftime('%Y-%m-%dT%H:%M:%fZ', NEW.ends_at, '+0 days') IS NOT NEW.ends_at
        OR strftime('%Y-%m-%dT%H:%M:%fZ', NEW.created_at, '+0 days') IS NOT NEW.created_at
        OR strftime('%Y-%m-%dT%H:%M:%fZ', NEW.updated_at, '+0 days') IS NOT NEW.updated_at;
END;

CREATE TRIGGER campaigns_time_of_changed BEFORE UPDATE OF starts_at, ends_at, created_at, updated_at ON campaigns
WHEN (coalesce(NEW.starts_at, '') || coalesce(NEW.ends_at, '') || coalesce(NEW.created_at, '')
    || coalesce(NEW.updated_at, '')) GLOB '*-[23][019]T*'
    OR (coalesce(NEW.starts_at, '') || coalesce(NEW.ends_at, '') || coalesce(NEW.created_at, '')
    || coalesce(NEW.updated_at, '')) GLOB '*T24:*' BEGIN
    SELECT RAISE(ABORT, 'campaigns: a day or hour that no calendar has')
    WHERE strftime('%Y-%m-%dT%H:%M:%fZ', NEW.starts_at, '+0 days') IS NOT NEW.starts_at
        OR strftime('%Y-%m-%dT%H:%M:%fZ', NEW.ends_at, '+0 days') IS NOT NEW.ends_at
        OR strftime('%Y-%m-%dT%H:%M:%fZ', NEW.created_at, '+0 days') IS NOT NEW.created_at
        OR strftime('%Y-%m-%dT%H:%M:%fZ', NEW.updated_at, '+0 days') IS NOT NEW.updated_at;
END;

UPDATE clips SET created_at = strftime('%Y-%m-%dT%H:%M:%fZ', created_at, '+0 days'),
    updated_at = strftime('%Y-%m-%dT%H:%M:%fZ', updated_at, '+0 days')
WHERE (created_at GLOB '*-[23][019]T*'
    OR created_at GLOB '*T24:*'
    OR updated_at GLOB '*-[23][019]T*'
    OR updated_at GLOB '*T24:*')
    AND (strftime('%Y-%m-%dT%H:%M:%fZ', created_at, '+0 days') IS NOT created_at
        OR strftime('%Y-%m-%dT%H:%M:%fZ', updated_at, '+0 days') IS NOT updated_at);

CREATE TRIGGER clips_time_of_new BEFORE INSERT ON clips
WHEN (coalesce(NEW.created_at, '') || coalesce(NEW.updated_at, '')) GLOB '*-[23][019]T*'
    OR (coalesce(NEW.created_at, '') || coalesce(NEW.updated_at, '')) GLOB '*T24:*' BEGIN
    SELECT RAISE(ABORT, 'clips: a day or hour that no calendar has')
    WHERE strftime('%Y-%m-%dT%H:%M:%fZ', NEW.created_at, '+0 days') IS NOT NEW.created_at
        OR strftime('%Y-%m-%dT%H:%M:%fZ', NEW.updated_at, '+0 days') IS NOT NEW.updated_at;
END;

CREATE TRIGGER clips_time_of_changed BEFORE UPDATE OF created_at, updated_at ON clips
WHEN (coalesce(NEW.created_at, '') || coalesce(NEW.updated_at, '')) GLOB '*-[23][019]T*'
    OR (coalesce(NEW.created_at, '') || coalesce(NEW.updated_at, '')) GLOB '*T24:*' BEGIN
    SELECT RAISE(ABORT, 'clips: a day or hour that no calendar has')
    WHERE strftime('%Y-%m-%dT%H:%M:%fZ', NEW.created_at, '+0 days') IS NOT NEW.created_at
        OR strftime('%Y-%m-%dT%H:%M:%fZ', NEW.updated_at, '+0 days') IS NOT NEW.updated_at;
END;

UPDATE jobs SET idempotency_until = strftime('%Y-%m-%dT%H:%M:%fZ', idempotency_until, '+0 days'),
    run_at = strftime('%Y-%m-%dT%H:%M:%fZ', run_at, '+0 days'),
    lease_expires_at = strftime('%Y-%m-%dT%H:%M:%fZ', lease_expires_at, '+0 days'),
    deadline_at = strftime('%Y-%m-%dT%H:%M:%fZ', deadline_at, '+0 days'),
    heartbeat_at = strftime('%Y-%m-%dT%H:%M:%fZ', heartbeat_at, '+0 days'),
    cancel_requested_at = strftime('%Y-%m-%dT%H:%M:%fZ', cancel_requested_at, '+0 days'),
    created_at = strftime('%Y-%m-%dT%H:%M:%fZ', created_at, '+0 days'),
    updated_at = strftime('%Y-%m-%dT%H:%M:%fZ', updated_at, '+0 days'),
    started_at = strftime('%Y-%m-%dT%H:%M:%fZ', started_at, '+0 days'),
    finished_at = strftime('%Y-%m-%dT%H:%M:%fZ', finished_at, '+0 days')
WHERE (idempotency_until GLOB '*-[23][019]T*'
    OR idempotency_until GLOB '*T24:*'
    OR run_at GLOB '*-[23][019]T*'
    OR run_at GLOB '*T24:*'
    OR lease_expires_at GLOB '*-[23][019]T*'
    OR lease_expires_at GLOB '*T24:*'
    OR deadline_at GLOB '*-[23][019]T*'
    OR deadline_at GLOB '*T24:*'
    OR heartbeat_at GLOB '*-[23][019]T*'
    OR heartbeat_at GLOB '*T24:*'
    OR cancel_requested_at GLOB '*-[23][019]T*'
    OR cancel_requested_at GLOB '*T24:*'
    OR created_at GLOB '*-[23][019]T*'
    OR created_at GLOB '*T24:*'
    OR updated_at GLOB '*-[23][019]T*'
    OR updated_at GLOB '*T24:*'
    OR started_at GLOB '*-[23][019]T*'
    OR started_at GLOB '*T24:*'
    OR finished_at GLOB '*-[23][019]T*'
    OR finished_at GLOB '*T24:*')
    AND (strftime('%Y-%m-%dT%H:%M:%fZ', idempotency_until, '+0 days') IS NOT idempotency_until
        OR strftime('%Y-%m-%dT%H:%M:%fZ', run_at, '+0 days') IS NOT run_at
        OR strftime('%Y-%m-%dT%H:%M:%fZ', lease_expires_at, '+0 days') IS NOT lease_expires_at
        OR strftime('%Y-%m-%dT%H:%M:%fZ', deadline_at, '+0 days') IS NOT deadline_at
        OR strftime('%Y-%m-%dT%H:%M:%fZ', heartbeat_at, '+0 days') IS NOT heartbeat_at
        OR strftime('%Y-%m-%dT%H:%M:%fZ', cancel_requested_at, '+0 days') IS NOT cancel_requested_at
        OR strftime('%Y-%m-%dT%H:%M:%fZ', created_at, '+0 days') IS NOT created_at
        OR strftime('%Y-%m-%dT%H:%M:%fZ', updated_at, '+0 days') IS NOT updated_at
        OR strftime('%Y-%m-%dT%H:%M:%fZ', started_at, '+0 days') IS NOT started_at
        OR strftime('%Y-%m-%dT%H:%M:%fZ', finished_at, '+0 days') IS NOT finished_at);

-- Jobs are written by the thousand every second, and the service itself writes no such time: only the one that other
-- programs give is looked at. The others are read as they are counted.
CREATE TRIGGER jobs_time_of_new BEFORE INSERT ON jobs
WHEN NEW.run_at IS NOT NULL AND strftime('%Y-%m-%dT%H:%M:%fZ', NEW.run_at, '+0 days') IS NOT NEW.run_at BEGIN
    SELECT RAISE(ABORT, 'jobs: a day or hour that no calendar has');
END;

CREATE TRIGGER jobs_time_of_changed BEFORE UPDATE OF run_at ON jobs
WHEN NEW.run_at IS NOT OLD.run_at AND NEW.run_at IS NOT NULL
    AND strftime('%Y-%m-%dT%H:%M:%fZ', NEW.run_at, '+0 days') IS NOT NEW.run_at BEGIN
    SELECT RAISE(ABORT, 'jobs: a day or hour that no calendar has');
END;

UPDATE publish_logs SET scheduled_at = strftime('%Y-%m-%dT%H:%M:%fZ', scheduled_at, '+0 days'),
    pending_at = strftime('%Y-%m-%dT%H:%M:%fZ', pending_at, '+0 days'),
    attempted_at = strftime('%Y-%m-%dT%H:%M:%fZ', attempted_at, '+0 days'),
    failed_at = strftime('%Y-%m-%dT%H:%M:%fZ', failed_at, '+0 days'),
    published_at = strftime('%Y-%m-%dT%H:%M:%fZ', published_at, '+0 days'),
    created_at = strftime('%Y-%m-%dT%H:%M:%fZ', created_at, '+0 days'),
    updated_at = strftime('%Y-%m-%dT%H:%M:%fZ', updated_at, '+0 days')
WHERE (scheduled_at GLOB '*-[23][019]T*'
    OR scheduled_at GLOB '*T24:*'
    OR pending_at GLOB '*-[23][019]T*'
    OR pending_at GLOB '*T24:*'
    OR attempted_at GLOB '*-[23][019]T*'
    OR attempted_at GLOB '*T24:*'
    OR failed_at GLOB '*-[23][019]T*'
    OR failed_at GLOB '*T24:*'
    OR published_at GLOB '*-[23][019]T*'
    OR published_at GLOB '*T24:*'
    OR created_at GLOB '*-[23][019]T*'
    OR created_at GLOB '*T24:*'
    OR updated_at GLOB '*-[23][019]T*'
    OR updated_at GLOB '*T24:*')
    AND (strftime('%Y-%m-%dT%H:%M:%fZ', scheduled_at, '+0 days') IS NOT scheduled_at
        OR strftime('%Y-%m-%dT%H:%M:%fZ', pending_at, '+0 days') IS NOT pending_at
        OR strftime('%Y-%m-%dT%H:%M:%fZ', attempted_at, '+0 days') IS NOT attempted_at
        OR strftime('%Y-%m-%dT%H:%M:%fZ', failed_at, '+0 days') IS NOT failed_at
        OR strftime('%Y-%m-%dT%H:%M:%fZ', published_at, '+0 days') IS NOT published_at
        OR strftime('%Y-%m-%dT%H:%M:%fZ', created_at, '+0 days') IS NOT created_at
        OR strftime('%Y-%m-%dT%H:%M:%fZ', updated_at, '+0 days') IS NOT updated_at);

CREATE TRIGGER publish_logs_time_of_new BEFORE INSERT ON publish_logs
WHEN (coalesce(NEW.scheduled_at, '') || coalesce(NEW.pending_at, '') || coalesce(NEW.attempted_at, '')
    || coalesce(NEW.failed_at, '') || coalesce(NEW.published_at, '') || coalesce(NEW.created_at, '')
    || coalesce(NEW.updated_at, '')) GLOB '*-[23][019]T*'
    OR (coalesce(NEW.scheduled_at, '') || coalesce(NEW.pending_at, '') || coalesce(NEW.attempted_at, '')
    || coalesce(NEW.failed_at, '') || coalesce(NEW.published_at, '') || coalesce(NEW.created_at, '')
    || coalesce(NEW.updated_at, '')) GLOB '*T24:*' BEGIN
    SELECT RAISE(ABORT, 'publish_logs: a day or hour that no calendar has')
    WHERE strftime('%Y-%m-%dT%H:%M:%fZ', NEW.scheduled_at, '+0 days') IS NOT NEW.scheduled_at
        OR strftime('%Y-%m-%dT%H:%M:%fZ', NEW.pending_at, '+0 days') IS NOT NEW.pending_at
        OR strftime('%Y-%m-%dT%H:%M:%fZ', NEW.attempted_at, '+0 days') IS NOT NEW.attempted_at
        OR strftime('%Y-%m-%dT%H:%M:%fZ', NEW.failed_at, '+0 days') IS NOT NEW.failed_at
        OR strftime('%Y-%m-%dT%H:%M:%fZ', NEW.published_at, '+0 days') IS NOT NEW.published_at
        OR strftime('%Y-%m-%dT%H:%M:%fZ', NEW.created_at, '+0 days') IS NOT NEW.created_at
        OR strftime('%Y-%m-%dT%H:%M:%fZ', NEW.updated_at, '+0 days') IS NOT NEW.updated_at;
END;

CREATE TRIGGER publish_logs_time_of_changed BEFORE UPDATE OF scheduled_at, pending_at, attempted_at, failed_at, published_at, created_at, updated_at ON publish_logs
WHEN (coalesce(NEW.scheduled_at, '') || coalesce(NEW.pending_at, '') || coalesce(NEW.attempted_at, '')
    || coalesce(NEW.failed_at, '') || coalesce(NEW.published_at, '') || coalesce(NEW.created_at, '')
    || coalesce(NEW.updated_at, '')) GLOB '*-[23][019]T*'
    OR (coalesce(NEW.scheduled_at, '') || coalesce(NEW.pending_at, '') || coalesce(NEW.attempted_at, '')
    || coalesce(NEW.failed_at, '') || coalesce(NEW.published_at, '') || coalesce(NEW.created_at, '')
    || coalesce(NEW.updated_at, '')) GLOB '*T24:*' BEGIN
    SELECT RAISE(ABORT, 'publish_logs: a day or hour that no calendar has')
    WHERE strftime('%Y-%m-%dT%H:%M:%fZ', NEW.scheduled_at, '+0 days') IS NOT NEW.scheduled_at
        OR strftime('%Y-%m-%dT%H:%M:%fZ', NEW.pending_at, '+0 days') IS NOT NEW.pending_at
        OR strftime('%Y-%m-%dT%H:%M:%fZ', NEW.attempted_at, '+0 days') IS NOT NEW.attempted_at
        OR strftime('%Y-%m-%dT%H:%M:%fZ', NEW.failed_at, '+0 days') IS NOT NEW.failed_at
        OR strftime('%Y-%m-%dT%H:%M:%fZ', NEW.published_at, '+0 days') IS NOT NEW.published_at
        OR strftime('%Y-%m-%dT%H:%M:%fZ', NEW.created_at, '+0 days') IS NOT NEW.created_at
        OR strftime('%Y-%m-%dT%H:%M:%fZ', NEW.updated_at, '+0 days') IS NOT NEW.updated_at;
END;
