// graphile-worker on PostgreSQL. https://worker.graphile.org/docs/performance advises a local queue and batched
// completion for many small jobs; an idle queue is served by the defaults, which listen for NOTIFY.
import { Logger, makeWorkerUtils, run } from 'graphile-worker';
import pg from 'pg';
import { measure } from './measure.mjs';

const logger = new Logger(() => () => {});
const connectionString = process.env.DATABASE;
const pgPool = new pg.Pool({ connectionString, max: 12 });
pgPool.on('error', (error) => console.error(error.message));
const utils = await makeWorkerUtils({ pgPool, logger });
await utils.migrate();

const full = { localQueue: { size: 500 }, completeJobBatchDelay: 0, failJobBatchDelay: 0 };

await measure({
  clear: () => pgPool.query('TRUNCATE graphile_worker._private_jobs'),
  settle: async () => {
    await pgPool.query('VACUUM ANALYZE graphile_worker._private_jobs');
    await pgPool.query('CHECKPOINT');
  },
  one: (n) => utils.addJob('noop', { n }),
  batch: (ns) => utils.addJobs(ns.map((n) => ({ identifier: 'noop', payload: { n } }))),
  open: async () => Number((await pgPool.query('SELECT count(*) FROM graphile_worker._private_jobs')).rows[0].count),
  work: async (handler, idle) => {
    const worker = { connectionString, logger, concurrentJobs: 24, maxPoolSize: 12, ...(idle ? {} : full) };
    const runner = await run({ preset: { worker }, taskList: { noop: () => void handler() }, noHandleSignals: true });
    return () => runner.stop();
  },
});
