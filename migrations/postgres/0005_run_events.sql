-- What happens to runs, told as events in the transaction that does it, whoever changes the run.
CREATE FUNCTION showrunner_run_started() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO events (event_type, source, subject, data, created_at)
    VALUES ('workflow_started', coalesce(NEW.engine, NEW.owner, 'pipelines'), 'run:' || NEW.id,
        json_build_object('workflowId', NEW.pipeline_id, 'version', NEW.version, 'trigger', NEW.trigger_kind), NEW.started_at);
    RETURN NULL;
END $$;
CREATE TRIGGER pipeline_runs_told_begun AFTER INSERT ON pipeline_runs FOR EACH ROW
    WHEN (NEW.started_at IS NOT NULL) EXECUTE FUNCTION showrunner_run_started();
CREATE TRIGGER pipeline_runs_told_start AFTER UPDATE OF started_at ON pipeline_runs FOR EACH ROW
    WHEN (OLD.started_at IS NULL AND NEW.started_at IS NOT NULL) EXECUTE FUNCTION showrunner_run_started();

-- A failed child is its parent's to judge: a warning.
CREATE FUNCTION showrunner_run_ended() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    told_by TEXT := 'pipelines';
BEGIN
    IF TG_OP = 'UPDATE' THEN
        told_by := coalesce(OLD.engine, told_by);
    END IF;
    INSERT INTO events (event_type, severity, source, subject, data, created_at)
    VALUES (CASE NEW.status WHEN 'completed' THEN 'workflow_completed' WHEN 'failed' THEN 'workflow_failed' ELSE 'run.cancelled' END,
        CASE WHEN NEW.status <> 'failed' THEN 'info' WHEN NEW.parent_run_id IS NULL THEN 'error' ELSE 'warning' END,
        told_by, 'run:' || NEW.id,
        json_build_object('workflowId', NEW.pipeline_id, 'version', NEW.version, 'error', left(NEW.error, 500),
            'retries', NEW.retries), coalesce(NEW.finished_at, clock_timestamp()));
    RETURN NULL;
END $$;
CREATE TRIGGER pipeline_runs_told_refusal AFTER INSERT ON pipeline_runs FOR EACH ROW
    WHEN (NEW.status = 'failed') EXECUTE FUNCTION showrunner_run_ended();
CREATE TRIGGER pipeline_runs_told_end AFTER UPDATE OF status ON pipeline_runs FOR EACH ROW
    WHEN (OLD.status <> NEW.status AND NEW.status IN ('completed', 'failed', 'cancelled')) EXECUTE FUNCTION showrunner_run_ended();
