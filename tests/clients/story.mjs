// A client written from the document alone: every call that it shows, every answer checked.
import assert from 'node:assert/strict';
import WebSocket from 'ws';

const place = `localhost:${process.env.PORT}`;
const agentId = process.env.AGENT_ID;
const url = (path) => `http://${place}${path}`;
const patience = 60_000;

const updates = [];
let arrived = () => {};
const ws = new WebSocket(`ws://${place}/ui`);
ws.on('message', (data) => {
  updates.push(JSON.parse(data.toString()));
  arrived();
});
await new Promise((resolve, reject) => ws.on('open', resolve).on('error', reject));

/** The first update from `from` on that is of that type and fits; waits for it. */
async function update(type, fits, from = 0) {
  const until = Date.now() + patience;
  for (let at = from; ; ) {
    for (; at < updates.length; at += 1) {
      if (updates[at].type === type && fits(updates[at].payload)) return updates[at].payload;
    }
    const left = until - Date.now();
    assert(left > 0, `no ${type} in time, but ${JSON.stringify(updates.slice(from), null, 1)}`);
    await new Promise((resolve) => {
      arrived = resolve;
      setTimeout(resolve, left).unref();
    });
  }
}

async function call(method, path, body) {
  const headers = body === undefined ? {} : { 'Content-Type': 'application/json' };
  const response = await fetch(url(path), { method, headers, body: JSON.stringify(body) });
  const text = await response.text();
  return [response.status, text === '' ? null : JSON.parse(text)];
}

async function good(method, path, body) {
  const [status, answer] = await call(method, path, body);
  assert(status >= 200 && status < 300, `${method} ${path}: ${status} ${JSON.stringify(answer)}`);
  return answer;
}

/** Asks until the answer fits. */
async function until(path, fits) {
  for (const began = Date.now(); Date.now() - began < patience; ) {
    const answer = await good('GET', path);
    if (fits(answer)) return answer;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  assert.fail(`${path} never fitted: ${JSON.stringify(await good('GET', path))}`);
}

const config = (n) => ({ streamUrl: 'rtmp://example.com/live', outputFormat: 'mp4', file: `node-${n}.mkv` });

// Health, and the agent.
assert.equal((await call('GET', '/healthz'))[0], 200);
const agent = await update('ui.agent.update', (agent) => agent.id === agentId && agent.state === 'IDLE');
assert.equal(typeof agent.name, 'string');
assert.equal(agent.currentJobId, null);
assert.equal(agent.drain, false);
assert.equal(agent.capabilities.slots, 1);
assert(!Number.isNaN(Date.parse(agent.lastSeenAt)));
assert((await good('GET', '/v1/agents')).some((one) => one.id === agentId));

// Submit; the same key is the same job.
const order = { inlineConfig: config(1), idempotencyKey: 'node-story-1', restartPolicy: 'never' };
const job = await good('POST', '/v1/jobs', order);
assert.equal((await good('POST', '/v1/jobs', order)).id, job.id);
const ofJob = `/v1/jobs/${job.id}`;
const running = await update('ui.job.update', (one) => one.id === job.id && one.status === 'RUNNING');
assert.equal(running.agentId, agentId);
assert(Date.parse(running.createdAt) <= Date.parse(running.startedAt));
await update('ui.agent.update', (one) => one.id === agentId && one.state === 'RUNNING' && one.currentJobId === job.id);
assert.equal((await good('GET', ofJob)).status, 'RUNNING');
const listed = await good('GET', '/v1/jobs');
assert(listed.some((one) => one.id === job.id));
const times = listed.map((one) => one.createdAt);
assert.deepEqual(times, [...times].sort(), 'sorted by creation time');

// Metadata is merged.
await good('PUT', `${ofJob}/metadata`, { title: 'My Awesome Stream', viewers: 1 });
await good('PUT', `${ofJob}/metadata`, { viewers: 1234, platform: 'youtube' });
const metadata = await good('GET', `${ofJob}/metadata`);
assert.deepEqual([metadata.title, metadata.viewers, metadata.platform], ['My Awesome Stream', 1234, 'youtube']);

// Sound off and on: true once the agent has said so.
await good('POST', `${ofJob}/mute`);
await until(`${ofJob}/metadata`, (metadata) => metadata.isMuted === true && metadata.title === 'My Awesome Stream');
await new Promise((resolve) => setTimeout(resolve, 1000)); // a second of silence, to be found in the recording
await good('POST', `${ofJob}/unmute`);
await until(`${ofJob}/metadata`, (metadata) => metadata.isMuted === false);

// Stop; what is over cannot be muted.
await good('POST', `${ofJob}/stop`);
await update('ui.job.update', (one) => one.id === job.id && one.status === 'STOPPED');
const [status, problem] = await call('POST', `${ofJob}/mute`);
assert.equal(status, 409, JSON.stringify(problem));

// A draining agent takes nothing new; what waits runs once it takes jobs again.
let mark = updates.length;
await good('POST', `/v1/agents/${agentId}/drain`, { drain: true });
await update('ui.agent.update', (one) => one.id === agentId && one.state === 'DRAINING' && one.drain, mark);
const waiting = await good('POST', '/v1/jobs', { inlineConfig: config(2), idempotencyKey: 'node-story-2' });
await update('ui.job.update', (one) => one.id === waiting.id && one.status === 'PENDING');
mark = updates.length;
await good('POST', `/v1/agents/${agentId}/drain`, { drain: false });
await update('ui.job.update', (one) => one.id === waiting.id && one.status === 'RUNNING', mark);
await good('POST', `/v1/jobs/${waiting.id}/stop`);
await update('ui.job.update', (one) => one.id === waiting.id && one.status === 'STOPPED', mark);

// What does not exist, and what does not fit.
assert.equal((await call('GET', '/v1/jobs/job-999999'))[0], 404);
for (const wrong of [{}, { templateId: 'none-such' }, { templateId: 'a', inlineConfig: {} }]) {
  const [status, problem] = await call('POST', '/v1/jobs', wrong);
  assert(status >= 400 && status < 500, `${JSON.stringify(wrong)}: ${status} ${JSON.stringify(problem)}`);
}
console.log('all as the document says');
ws.close();
