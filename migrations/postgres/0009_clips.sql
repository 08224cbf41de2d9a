-- Two transactions that cancel the last publications of a clip do not see each other: whoever comes second waits here,
-- and looks again with the first one's cancellation before it. So it does against a publication that is being planned.
CREATE OR REPLACE FUNCTION showrunner_clip_follows() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.status = 'published' THEN
        UPDATE clips SET status = 'published' WHERE id = NEW.clip_id AND status IN ('ready', 'scheduled');
    ELSIF NEW.status = 'cancelled' THEN
        PERFORM 1 FROM clips WHERE id = NEW.clip_id FOR UPDATE;
        UPDATE clips SET status = 'ready' WHERE id = NEW.clip_id AND status = 'scheduled'
            AND NOT EXISTS (SELECT 1 FROM publish_logs WHERE clip_id = NEW.clip_id AND status <> 'cancelled');
    ELSE
        UPDATE clips SET status = 'scheduled' WHERE id = NEW.clip_id AND status = 'ready';
    END IF;
    RETURN NULL;
END $$;
