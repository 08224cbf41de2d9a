-- Text that is not UTF-8, which SQLite takes and nobody can read, is refused where other programs may write, and so is
-- a NUL. What is ASCII passes at once; the rest is halved until it is ASCII or one character, which has to be the bytes
-- that its code point is written by. SQLite reads U+FFFE and U+FFFF as U+FFFD, though they are characters like others.
-- The space between two columns ends what the first leaves open. JSON is left out: it may be long, and is read whatever
-- it holds.

CREATE TRIGGER campaigns_text_of_new BEFORE INSERT ON campaigns
WHEN (NEW.name)
    GLOB '*[^' || char(1) || '-' || char(127) || ']*'
    OR instr(NEW.name, char(0)) > 0 BEGIN
    SELECT RAISE(ABORT, 'campaigns: text that is not UTF-8, or holds a NUL') WHERE EXISTS (
        WITH RECURSIVE pieces(piece) AS (
            SELECT NEW.name
            UNION ALL
            SELECT CASE half WHEN 1 THEN substr(piece, 1, length(piece) / 2) ELSE substr(piece, length(piece) / 2 + 1) END
            FROM pieces, (SELECT 1 AS half UNION ALL SELECT 2)
            WHERE length(piece) > 1 AND piece GLOB '*[^' || char(1) || '-' || char(127) || ']*'
        )
        SELECT 1 FROM pieces
        WHERE instr(piece, char(0)) > 0 OR (length(piece) = 1
            AND CAST(piece AS BLOB) NOT IN (CAST(char(unicode(piece)) AS BLOB), x'efbfbe', x'efbfbf'))
    );
END;

CREATE TRIGGER campaigns_text_of_changed BEFORE UPDATE OF name ON campaigns
WHEN (NEW.name)
    GLOB '*[^' || char(1) || '-' || char(127) || ']*'
    OR instr(NEW.name, char(0)) > 0 BEGIN
    SELECT RAISE(ABORT, 'campaigns: text that is not UTF-8, or holds a NUL') WHERE EXISTS (
        WITH RECURSIVE pieces(piece) AS (
            SELECT NEW.name
            UNION ALL
            SELECT CASE half WHEN 1 THEN substr(piece, 1, length(piece) / 2) ELSE substr(piece, length(piece) / 2 + 1) END
            FROM pieces, (SELECT 1 AS half UNION ALL SELECT 2)
            WHERE length(piece) > 1 AND piece GLOB '*[^' || char(1) || '-' || char(127) || ']*'
        )
        SELECT 1 FROM pieces
        WHERE instr(piece, char(0)) > 0 OR (length(piece) = 1
            AND CAST(piece AS BLOB) NOT IN (CAST(char(unicode(piece)) AS BLOB), x'efbfbe', x'efbfbf'))
    );
END;

CREATE TRIGGER clips_text_of_new BEFORE INSERT ON clips
WHEN (NEW.title || ' ' || NEW.media_uri)
    GLOB '*[^' || char(1) || '-' || char(127) || ']*'
    OR instr(NEW.title || ' ' || NEW.media_uri, char(0)) > 0 BEGIN
    SELECT RAISE(ABORT, 'clips: text that is not UTF-8, or holds a NUL') WHERE EXISTS (
        WITH RECURSIVE pieces(piece) AS (
            SELECT NEW.title || ' ' || NEW.media_uri
            UNION ALL
            SELECT CASE half WHEN 1 THEN substr(piece, 1, length(piece) / 2) ELSE substr(piece, length(piece) / 2 + 1) END
            FROM pieces, (SELECT 1 AS half UNION ALL SELECT 2)
            WHERE length(piece) > 1 AND piece GLOB '*[^' || char(1) || '-' || char(127) || ']*'
        )
        SELECT 1 FROM pieces
        WHERE instr(piece, char(0)) > 0 OR (length(piece) = 1
            AND CAST(piece AS BLOB) NOT IN (CAST(char(unicode(piece)) AS BLOB), x'efbfbe', x'efbfbf'))
    );
END;

CREATE TRIGGER clips_text_of_changed BEFORE UPDATE OF title, media_uri ON clips
WHEN (NEW.title || ' ' || NEW.media_uri)
    GLOB '*[^' || char(1) || '-' || char(127) || ']*'
    OR instr(NEW.title || ' ' || NEW.media_uri, char(0)) > 0 BEGIN
    SELECT RAISE(ABORT, 'clips: text that is not UTF-8, or holds a NUL') WHERE EXISTS (
        WITH RECURSIVE pieces(piece) AS (
            SELECT NEW.title || ' ' || NEW.media_uri
            UNION ALL
            SELECT CASE half WHEN 1 THEN substr(piece, 1, length(piece) / 2) ELSE substr(piece, length(piece) / 2 + 1) END
            FROM pieces, (SELECT 1 AS half UNION ALL SELECT 2)
            WHERE length(piece) > 1 AND piece GLOB '*[^' || char(1) || '-' || char(127) || ']*'
        )
        SELECT 1 FROM pieces
        WHERE instr(piece, char(0)) > 0 OR (length(piece) = 1
            AND CAST(piece AS BLOB) NOT IN (CAST(char(unicode(piece)) AS BLOB), x'efbfbe', x'efbfbf'))
    );
END;

-- Most jobs have no text but their kind and queue, and most changes touch no text: the rest is only looked at where there
-- is something.
CREATE TRIGGER jobs_text_of_new BEFORE INSERT ON jobs
WHEN (NEW.kind || ' ' || NEW.queue)
        GLOB '*[^' || char(1) || '-' || char(127) || ']*'
    OR instr(NEW.kind || ' ' || NEW.queue, char(0)) > 0
    OR coalesce(NEW.input_ref, NEW.result_ref, NEW.idempotency_key, NEW.concurrency_key, NEW.worker, NEW.progress_message, NEW.outcome, NEW.error) IS NOT NULL AND ((coalesce(NEW.input_ref, '')
            || ' ' || coalesce(NEW.result_ref, '')
            || ' ' || coalesce(NEW.idempotency_key, '')
            || ' ' || coalesce(NEW.concurrency_key, '')
            || ' ' || coalesce(NEW.worker, '')
            || ' ' || coalesce(NEW.progress_message, '')
            || ' ' || coalesce(NEW.outcome, '')
            || ' ' || coalesce(NEW.error, ''))
            GLOB '*[^' || char(1) || '-' || char(127) || ']*'
        OR instr(coalesce(NEW.input_ref, '')
            || ' ' || coalesce(NEW.result_ref, '')
            || ' ' || coalesce(NEW.idempotency_key, '')
            || ' ' || coalesce(NEW.concurrency_key, '')
            || ' ' || coalesce(NEW.worker, '')
            || ' ' || coalesce(NEW.progress_message, '')
            || ' ' || coalesce(NEW.outcome, '')
            || ' ' || coalesce(NEW.error, ''), char(0)) > 0) BEGIN
    SELECT RAISE(ABORT, 'jobs: text that is not UTF-8, or holds a NUL') WHERE EXISTS (
        WITH RECURSIVE pieces(piece) AS (
            SELECT NEW.kind || ' ' || NEW.queue
        || ' ' || coalesce(NEW.input_ref, '')
        || ' ' || coalesce(NEW.result_ref, '')
        || ' ' || coalesce(NEW.idempotency_key, '')
        || ' ' || coalesce(NEW.concurrency_key, '')
        || ' ' || coalesce(NEW.worker, '')
        || ' ' || coalesce(NEW.progress_message, '')
        || ' ' || coalesce(NEW.outcome, '')
        || ' ' || coalesce(NEW.error, '')
            UNION ALL
            SELECT CASE half WHEN 1 THEN substr(piece, 1, length(piece) / 2) ELSE substr(piece, length(piece) / 2 + 1) END
            FROM pieces, (SELECT 1 AS half UNION ALL SELECT 2)
            WHERE length(piece) > 1 AND piece GLOB '*[^' || char(1) || '-' || char(127) || ']*'
        )
        SELECT 1 FROM pieces
        WHERE instr(piece, char(0)) > 0 OR (length(piece) = 1
            AND CAST(piece AS BLOB) NOT IN (CAST(char(unicode(piece)) AS BLOB), x'efbfbe', x'efbfbf'))
    );
END;

CREATE TRIGGER jobs_text_of_changed BEFORE UPDATE OF kind, queue, input_ref, result_ref, idempotency_key, concurrency_key, progress_message, error ON jobs
WHEN (NEW.kind, NEW.queue, NEW.input_ref, NEW.result_ref, NEW.idempotency_key, NEW.concurrency_key, NEW.progress_message, NEW.error)
        IS NOT (OLD.kind, OLD.queue, OLD.input_ref, OLD.result_ref, OLD.idempotency_key, OLD.concurrency_key, OLD.progress_message, OLD.error)
    AND ((NEW.kind || ' ' || NEW.queue
            || ' ' || coalesce(NEW.input_ref, '')
            || ' ' || coalesce(NEW.result_ref, '')
            || ' ' || coalesce(NEW.idempotency_key, '')
            || ' ' || coalesce(NEW.concurrency_key, '')
            || ' ' || coalesce(NEW.progress_message, '')
            || ' ' || coalesce(NEW.error, ''))
            GLOB '*[^' || char(1) || '-' || char(127) || ']*'
        OR instr(NEW.kind || ' ' || NEW.queue
            || ' ' || coalesce(NEW.input_ref, '')
            || ' ' || coalesce(NEW.result_ref, '')
            || ' ' || coalesce(NEW.idempotency_key, '')
            || ' ' || coalesce(NEW.concurrency_key, '')
            || ' ' || coalesce(NEW.progress_message, '')
            || ' ' || coalesce(NEW.error, ''), char(0)) > 0) BEGIN
    SELECT RAISE(ABORT, 'jobs: text that is not UTF-8, or holds a NUL') WHERE EXISTS (
        WITH RECURSIVE pieces(piece) AS (
            SELECT NEW.kind || ' ' || NEW.queue
        || ' ' || coalesce(NEW.input_ref, '')
        || ' ' || coalesce(NEW.result_ref, '')
        || ' ' || coalesce(NEW.idempotency_key, '')
        || ' ' || coalesce(NEW.concurrency_key, '')
        || ' ' || coalesce(NEW.progress_message, '')
        || ' ' || coalesce(NEW.error, '')
            UNION ALL
            SELECT CASE half WHEN 1 THEN substr(piece, 1, length(piece) / 2) ELSE substr(piece, length(piece) / 2 + 1) END
            FROM pieces, (SELECT 1 AS half UNION ALL SELECT 2)
            WHERE length(piece) > 1 AND piece GLOB '*[^' || char(1) || '-' || char(127) || ']*'
        )
        SELECT 1 FROM pieces
        WHERE instr(piece, char(0)) > 0 OR (length(piece) = 1
            AND CAST(piece AS BLOB) NOT IN (CAST(char(unicode(piece)) AS BLOB), x'efbfbe', x'efbfbf'))
    );
END;

CREATE TRIGGER jobs_text_of_try BEFORE UPDATE OF worker, outcome ON jobs
WHEN (NEW.worker, NEW.outcome) IS NOT (OLD.worker, OLD.outcome)
    AND ((coalesce(NEW.worker, '') || ' ' || coalesce(NEW.outcome, ''))
            GLOB '*[^' || char(1) || '-' || char(127) || ']*'
        OR instr(coalesce(NEW.worker, '') || ' ' || coalesce(NEW.outcome, ''), char(0)) > 0) BEGIN
    SELECT RAISE(ABORT, 'jobs: text that is not UTF-8, or holds a NUL') WHERE EXISTS (
        WITH RECURSIVE pieces(piece) AS (
            SELECT coalesce(NEW.worker, '') || ' ' || coalesce(NEW.outcome, '')
            UNION ALL
            SELECT CASE half WHEN 1 THEN substr(piece, 1, length(piece) / 2) ELSE substr(piece, length(piece) / 2 + 1) END
            FROM pieces, (SELECT 1 AS half UNION ALL SELECT 2)
            WHERE length(piece) > 1 AND piece GLOB '*[^' || char(1) || '-' || char(127) || ']*'
        )
        SELECT 1 FROM pieces
        WHERE instr(piece, char(0)) > 0 OR (length(piece) = 1
            AND CAST(piece AS BLOB) NOT IN (CAST(char(unicode(piece)) AS BLOB), x'efbfbe', x'efbfbf'))
    );
END;

CREATE TRIGGER publish_logs_text_of_new BEFORE INSERT ON publish_logs
WHEN (NEW.platform || ' ' || NEW.idempotency_key || ' ' || coalesce(NEW.external_id, '')
        || ' ' || coalesce(NEW.external_url, '') || ' ' || coalesce(NEW.last_error, ''))
    GLOB '*[^' || char(1) || '-' || char(127) || ']*'
    OR instr(NEW.platform || ' ' || NEW.idempotency_key || ' ' || coalesce(NEW.external_id, '')
        || ' ' || coalesce(NEW.external_url, '') || ' ' || coalesce(NEW.last_error, ''), char(0)) > 0 BEGIN
    SELECT RAISE(ABORT, 'publish_logs: text that is not UTF-8, or holds a NUL') WHERE EXISTS (
        WITH RECURSIVE pieces(piece) AS (
            SELECT NEW.platform || ' ' || NEW.idempotency_key || ' ' || coalesce(NEW.external_id, '')
                || ' ' || coalesce(NEW.external_url, '') || ' ' || coalesce(NEW.last_error, '')
            UNION ALL
            SELECT CASE half WHEN 1 THEN substr(piece, 1, length(piece) / 2) ELSE substr(piece, length(piece) / 2 + 1) END
            FROM pieces, (SELECT 1 AS half UNION ALL SELECT 2)
            WHERE length(piece) > 1 AND piece GLOB '*[^' || char(1) || '-' || char(127) || ']*'
        )
        SELECT 1 FROM pieces
        WHERE instr(piece, char(0)) > 0 OR (length(piece) = 1
            AND CAST(piece AS BLOB) NOT IN (CAST(char(unicode(piece)) AS BLOB), x'efbfbe', x'efbfbf'))
    );
END;

CREATE TRIGGER publish_logs_text_of_changed BEFORE UPDATE OF platform, idempotency_key, external_id, external_url, last_error ON publish_logs
WHEN (NEW.platform || ' ' || NEW.idempotency_key || ' ' || coalesce(NEW.external_id, '')
        || ' ' || coalesce(NEW.external_url, '') || ' ' || coalesce(NEW.last_error, ''))
    GLOB '*[^' || char(1) || '-' || char(127) || ']*'
    OR instr(NEW.platform || ' ' || NEW.idempotency_key || ' ' || coalesce(NEW.external_id, '')
        || ' ' || coalesce(NEW.external_url, '') || ' ' || coalesce(NEW.last_error, ''), char(0)) > 0 BEGIN
    SELECT RAISE(ABORT, 'publish_logs: text that is not UTF-8, or holds a NUL') WHERE EXISTS (
        WITH RECURSIVE pieces(piece) AS (
            SELECT NEW.platform || ' ' || NEW.idempotency_key || ' ' || coalesce(NEW.external_id, '')
                || ' ' || coalesce(NEW.external_url, '') || ' ' || coalesce(NEW.last_error, '')
            UNION ALL
            SELECT CASE half WHEN 1 THEN substr(piece, 1, length(piece) / 2) ELSE substr(piece, length(piece) / 2 + 1) END
            FROM pieces, (SELECT 1 AS half UNION ALL SELECT 2)
            WHERE length(piece) > 1 AND piece GLOB '*[^' || char(1) || '-' || char(127) || ']*'
        )
        SELECT 1 FROM pieces
        WHERE instr(piece, char(0)) > 0 OR (length(piece) = 1
            AND CAST(piece AS BLOB) NOT IN (CAST(char(unicode(piece)) AS BLOB), x'efbfbe', x'efbfbf'))
    );
END;
