// A worker in JavaScript for Node.js 20 and later, without dependencies: called at its endpoint, it accepts a task run,
// carries it out and calls back.
//
//     export PIPEWEAVE_SECRET_KEY=…       # the same as the service's
//     node worker.mjs http://127.0.0.1:8000
import { createHash, createHmac, randomUUID } from 'node:crypto';
import { createServer } from 'node:http';

const base = process.argv[2] ?? 'http://127.0.0.1:8000';
const service = process.env.WORKER_SERVICE ?? 'example-node';
const key = Buffer.from(process.env.PIPEWEAVE_SECRET_KEY, 'hex');

const tasks = {
  upper: async ({ text }) => ({ text: text.toUpperCase() }),
};

/** A JWT that proves that we hold the key: short-lived, and used once. The key itself is never sent. */
function token() {
  const now = Math.floor(Date.now() / 1000);
  const part = (value) => Buffer.from(JSON.stringify(value)).toString('base64url');
  const text = `${part({ alg: 'HS256', typ: 'JWT' })}.${part({ iss: service, iat: now, exp: now + 60, jti: randomUUID() })}`;
  return `${text}.${createHmac('sha256', key).update(text).digest('base64url')}`;
}

async function post(path, body, bearer) {
  const headers = { 'content-type': 'application/json', authorization: `Bearer ${bearer}` };
  const response = await fetch(base + path, { method: 'POST', headers, body: JSON.stringify(body) });
  return { status: response.status, said: await response.json() };
}

async function carryOut(run) {
  const beat = () => post('/api/heartbeat', { runId: run.runId, lease: run.lease }, run.token).catch(() => {});
  const beats = setInterval(beat, run.heartbeatIntervalMs / 2);
  let answer;
  try {
    answer = { status: 'completed', result: await tasks[run.taskId](run.input) };
  } catch (failure) {
    answer = { status: 'failed', error: String(failure) };
  }
  clearInterval(beats);
  const { status } = await post(`/api/callback/${run.runId}`, { ...answer, lease: run.lease }, run.token);
  console.log(run.taskId, run.runId, answer.status, status);
}

const server = createServer(async (request, response) => {
  let text = '';
  for await (const piece of request) {
    text += piece;
    if (text.length > 8 << 20) return response.writeHead(413).end();
  }
  const run = JSON.parse(text);
  response.writeHead(202).end(); // accepted; how it ends is told by the callback
  carryOut(run).catch((failure) => console.error(failure));
});

server.listen(0, '127.0.0.1', async () => {
  const registered = {
    endpoint: `http://127.0.0.1:${server.address().port}/`,
    tasks: Object.entries(tasks).map(([id, task]) => ({ id, codeHash: createHash('sha256').update(String(task)).digest('hex') })),
  };
  const { status, said } = await post('/api/register', registered, token());
  if (status !== 200) {
    console.error('not registered', said);
    process.exit(1);
  }
  console.log('registered');
});
