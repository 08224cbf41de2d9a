// A worker in TypeScript for Node.js 20 and later that goes to storage by itself: it decrypts the credentials that come
// with a task run, fetches an input that is too large for a message, and puts a large result where the service finds it.
//
//     npm install jose aws4fetch typescript @types/node && npx tsc --strict --target es2022 --module nodenext storage_worker.ts
//     export PIPEWEAVE_SECRET_KEY=…       # the same as the service's
//     node storage_worker.js http://127.0.0.1:8000
import { createHash, randomUUID } from 'node:crypto';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { AwsClient } from 'aws4fetch';
import { SignJWT, jwtDecrypt } from 'jose';

interface Run {
  runId: number;
  taskId: string;
  lease: number;
  token: string;
  input: any;
  heartbeatIntervalMs: number;
  /** A JWE, `dir` and `A256GCM`, for the shared key. */
  storage: string;
}

interface Backend {
  provider: string;
  path?: string;
  endpoint?: string;
  bucket?: string;
  region?: string;
  credentials?: Record<string, string>;
}

interface Reference {
  backend: string;
  key: string;
  size: number;
  sha256: string;
}

const base = process.argv[2] ?? 'http://127.0.0.1:8000';
const service = process.env.WORKER_SERVICE ?? 'storage-node';
const secret = Buffer.from(process.env.PIPEWEAVE_SECRET_KEY ?? '', 'hex');
const large = 256 * 1024; // the service keeps what is smaller in its database

const tasks: Record<string, (input: any) => Promise<unknown>> = {
  shout: async ({ text }: { text: string }) => ({ text: text.toUpperCase() }),
};

/** Proves that we hold the key: short-lived, and used once. The key itself is never sent. */
function token(): Promise<string> {
  const signed = new SignJWT({}).setProtectedHeader({ alg: 'HS256', typ: 'JWT' }).setIssuer(service);
  return signed.setIssuedAt().setExpirationTime('60s').setJti(randomUUID()).sign(secret);
}

async function post(path: string, body: unknown, bearer: string): Promise<{ status: number; said: any }> {
  const headers = { 'content-type': 'application/json', authorization: `Bearer ${bearer}` };
  const response = await fetch(base + path, { method: 'POST', headers, body: JSON.stringify(body) });
  return { status: response.status, said: await response.json() };
}

/** The back ends that this run may use, by id, with their credentials. The token is good for this run only. */
async function opened(run: Run): Promise<Record<string, Backend>> {
  const { payload } = await jwtDecrypt(run.storage, secret, {
    issuer: 'showrunner',
    audience: 'worker',
    keyManagementAlgorithms: ['dir'],
    contentEncryptionAlgorithms: ['A256GCM'],
  });
  if (payload.lease !== run.lease) throw new Error('the storage token is not for this run');
  return payload.backends as Record<string, Backend>;
}

async function exchange(backend: Backend, key: string, body?: Buffer): Promise<Buffer> {
  if (backend.provider === 'local') {
    const file = join(backend.path!, key);
    if (!body) return readFile(file);
    await mkdir(dirname(file), { recursive: true });
    await writeFile(file, body);
    return body;
  }
  const keys = backend.credentials!;
  const client = new AwsClient({
    accessKeyId: keys.accessKeyId ?? keys.accessKey,
    secretAccessKey: keys.secretAccessKey ?? keys.secretKey,
    service: 's3',
    region: backend.region ?? 'us-east-1',
  });
  const endpoint = backend.endpoint ?? `https://s3.${backend.region}.amazonaws.com`;
  const url = `${endpoint.replace(/\/$/, '')}/${backend.bucket}/${key.split('/').map(encodeURIComponent).join('/')}`;
  const response = await client.fetch(url, body ? { method: 'PUT', body: new Uint8Array(body) } : {});
  if (!response.ok) throw new Error(`storage answers ${response.status}`);
  return Buffer.from(await response.arrayBuffer());
}

const digest = (data: Buffer) => createHash('sha256').update(data).digest('hex');

/** The input itself, also where a reference stands for it. */
async function fetched(run: Run): Promise<any> {
  const reference: Reference | undefined = run.input?.$storage;
  if (!reference) return run.input;
  const data = await exchange((await opened(run))[reference.backend], reference.key);
  if (digest(data) !== reference.sha256) throw new Error('the input is not the one that was given');
  return JSON.parse(data.toString());
}

/** The result, or a reference to it where it is large. */
async function kept(run: Run, result: unknown): Promise<unknown> {
  const data = Buffer.from(JSON.stringify(result));
  if (data.length < large) return result;
  const [backend, place] = Object.entries(await opened(run))[0];
  const key = `results/task-run-${run.runId}/${digest(data)}.json`;
  await exchange(place, key, data);
  return { $storage: { backend, key, size: data.length, sha256: digest(data) } satisfies Reference };
}

async function carryOut(run: Run): Promise<void> {
  const alive = { runId: run.runId, lease: run.lease };
  const beats = setInterval(() => post('/api/heartbeat', alive, run.token).catch(() => {}), run.heartbeatIntervalMs / 2);
  let answer: Record<string, unknown>;
  try {
    answer = { status: 'completed', result: await kept(run, await tasks[run.taskId](await fetched(run))) };
  } catch (failure) {
    answer = { status: 'failed', error: String(failure) };
  }
  clearInterval(beats);
  const { status } = await post(`/api/callback/${run.runId}`, { ...answer, lease: run.lease }, run.token);
  console.log(run.taskId, run.runId, answer.status, status);
}

const code = (task: unknown) => createHash('sha256').update(String(task)).digest('hex');
const registration = { tasks: Object.entries(tasks).map(([id, task]) => ({ id, codeHash: code(task) })) };
const { status, said } = await post('/api/register', registration, await token());
if (status !== 200) {
  console.error('not registered', said);
  process.exit(1);
}
console.log('registered');
for (;;) {
  const { status, said } = await post('/api/pull', { worker: String(process.pid), waitMs: 10000 }, await token());
  if (status !== 200) {
    console.error(status, said);
    await new Promise((resolve) => setTimeout(resolve, 1000));
    continue;
  }
  for (const run of said.runs as Run[]) await carryOut(run);
}
