// BullMQ on Redis with an append-only file that is synced at every write. Finished jobs are removed.
// https://docs.bullmq.io advises a concurrency of 100 to 300 for jobs that wait.
import { Queue, Worker } from 'bullmq';
import { measure } from './measure.mjs';

const connection = { host: '127.0.0.1', port: Number(process.env.REDIS_PORT), maxRetriesPerRequest: null };
const queue = new Queue('queue', { connection, defaultJobOptions: { removeOnComplete: true, removeOnFail: true } });

await measure({
  clear: () => queue.obliterate({ force: true }),
  settle: async () => {},
  one: (n) => queue.add('noop', { n }),
  batch: (ns) => queue.addBulk(ns.map((n) => ({ name: 'noop', data: { n } }))),
  open: () => queue.getJobCountByTypes('wait', 'active', 'delayed', 'prioritized'),
  work: async (handler, idle) => {
    const worker = new Worker('queue', async () => void handler(), { connection, concurrency: idle ? 10 : 200 });
    await worker.waitUntilReady();
    return () => worker.close();
  },
});
