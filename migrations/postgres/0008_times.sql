-- A try that began or ended at an infinite time, which other programs may write, has no duration; it used to hide all
-- tries of its job. Days that no calendar has are refused by PostgreSQL itself.
CREATE OR REPLACE VIEW job_attempts AS
    SELECT job_id, attempt, lease, worker, code_version, started_at, finished_at,
        CASE WHEN isfinite(started_at) AND isfinite(finished_at)
            THEN CAST(round(EXTRACT(EPOCH FROM finished_at - started_at) * 1000) AS BIGINT) END AS duration_ms, outcome, error
    FROM ended_attempts
    UNION ALL
    SELECT id, attempt, lease, worker, code_version, started_at, finished_at,
        CASE WHEN isfinite(started_at) AND isfinite(finished_at)
            THEN CAST(round(EXTRACT(EPOCH FROM finished_at - started_at) * 1000) AS BIGINT) END,
        CASE status WHEN 'processing' THEN 'running' ELSE 'completed' END, NULL
    FROM jobs WHERE status IN ('processing', 'completed') AND attempt > 0;
