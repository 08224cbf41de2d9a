// pg-boss on PostgreSQL. Batches of 1,000 and bursts for a full queue; a queue with NOTIFY for an idle one. The other
// one is without, which makes its enqueueing cheaper. https://pgboss.io
import { PgBoss } from 'pg-boss';
import { measure } from './measure.mjs';

const boss = new PgBoss({ connectionString: process.env.DATABASE, max: 10, useListenNotify: true, schedule: false });
boss.on('error', (error) => console.error(error.message));
await boss.start();
await boss.createQueue('full', { notify: false });
await boss.createQueue('idle', { notify: true });
const sql = (text) => boss.getDb().executeSql(text);

await measure({
  clear: () => boss.deleteAllJobs(),
  settle: async () => {
    await sql('VACUUM ANALYZE pgboss.job_common');
    await sql('CHECKPOINT');
  },
  one: (n, idle) => boss.send(idle ? 'idle' : 'full', { n }),
  batch: (ns) => boss.insert('full', ns.map((n) => ({ data: { n } }))),
  open: async () => Number((await sql("SELECT count(*) FROM pgboss.job WHERE state < 'completed'")).rows[0].count),
  work: async (handler, idle) => {
    const name = idle ? 'idle' : 'full';
    const full = { batchSize: 1_000, localConcurrency: 4, pollingIntervalSeconds: 0.5, burstWhenBatchFull: true };
    await boss.work(name, idle ? {} : full, async (jobs) => jobs.forEach(handler));
    return () => boss.offWork(name, { wait: true });
  },
});
