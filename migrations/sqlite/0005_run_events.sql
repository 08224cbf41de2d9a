-- What happens to runs, told as events in the transaction that does it, whoever changes the run.
CREATE TRIGGER pipeline_runs_told_start AFTER UPDATE OF started_at ON pipeline_runs
WHEN OLD.started_at IS NULL AND NEW.started_at IS NOT NULL BEGIN
    INSERT INTO events (event_type, source, subject, data, created_at)
    VALUES ('workflow_started', coalesce(NEW.engine, NEW.owner, 'pipelines'), 'run:' || NEW.id,
        json_object('workflowId', NEW.pipeline_id, 'version', NEW.version, 'trigger', NEW.trigger_kind), NEW.started_at);
END;
CREATE TRIGGER pipeline_runs_told_begun AFTER INSERT ON pipeline_runs WHEN NEW.started_at IS NOT NULL BEGIN
    INSERT INTO events (event_type, source, subject, data, created_at)
    VALUES ('workflow_started', coalesce(NEW.engine, NEW.owner, 'pipelines'), 'run:' || NEW.id,
        json_object('workflowId', NEW.pipeline_id, 'version', NEW.version, 'trigger', NEW.trigger_kind), NEW.started_at);
END;
-- A failed child is its parent's to judge: a warning.
CREATE TRIGGER pipeline_runs_told_refusal AFTER INSERT ON pipeline_runs WHEN NEW.status = 'failed' BEGIN
    INSERT INTO events (event_type, severity, source, subject, data, created_at)
    VALUES ('workflow_failed', CASE WHEN NEW.parent_run_id IS NULL THEN 'error' ELSE 'warning' END, 'pipelines',
        'run:' || NEW.id, json_object('workflowId', NEW.pipeline_id, 'version', NEW.version,
            'error', substr(NEW.error, 1, 500)), coalesce(NEW.finished_at, NEW.created_at));
END;
CREATE TRIGGER pipeline_runs_told_end AFTER UPDATE OF status ON pipeline_runs
WHEN OLD.status <> NEW.status AND NEW.status IN ('completed', 'failed', 'cancelled') BEGIN
    INSERT INTO events (event_type, severity, source, subject, data, created_at)
    VALUES (CASE NEW.status WHEN 'completed' THEN 'workflow_completed' WHEN 'failed' THEN 'workflow_failed' ELSE 'run.cancelled' END,
        CASE WHEN NEW.status <> 'failed' THEN 'info' WHEN NEW.parent_run_id IS NULL THEN 'error' ELSE 'warning' END,
        coalesce(OLD.engine, 'pipelines'), 'run:' || NEW.id,
        json_object('workflowId', NEW.pipeline_id, 'version', NEW.version, 'error', substr(NEW.error, 1, 500),
            'retries', NEW.retries), coalesce(NEW.finished_at, strftime('%Y-%m-%dT%H:%M:%fZ', 'now')));
END;
