// What the fleet's WebSockets do, by Node's `ws` alone: agents say hello and heartbeat, and what one says of a job goes
// to every watcher, as one text made once. No database, no tokens, no state but what is in memory.
import { createServer } from 'node:http';
import { WebSocketServer } from 'ws';

const server = createServer((_, response) => response.end('ok'));
const sockets = new WebSocketServer({ server, perMessageDeflate: false, maxPayload: 64 * 1024 });
const watchers = new Set();
const agents = new Map();
let seq = 0;

sockets.on('connection', (socket, request) => {
  socket.on('error', () => socket.terminate());
  if (request.url.startsWith('/ui')) {
    watchers.add(socket);
    socket.on('close', () => watchers.delete(socket));
    socket.send(JSON.stringify({ type: 'ui.ready', seq, payload: {} }));
    return;
  }
  let agent;
  socket.on('close', () => agent && agents.get(agent.id) === agent && agents.delete(agent.id));
  socket.on('message', (data) => {
    const { type, msgId, payload } = JSON.parse(data);
    if (agent) agent.lastSeenAt = Date.now();
    if (type === 'agent.hello') {
      agent = { id: payload.agentId, lastSeenAt: Date.now(), capabilities: payload.capabilities };
      agents.set(agent.id, agent);
      const terms = { heartbeatIntervalMs: 3000, heartbeatTimeoutMs: 10000, graceMs: 30000, instance: 'ws' };
      socket.send(JSON.stringify({ type: 'agent.hello.ack', correlationId: msgId, payload: terms }));
    } else if (type === 'agent.job.update') {
      const job = { id: payload.jobId, status: payload.status, agentId: agent.id, metadata: payload.metadata };
      seq += 1;
      const text = JSON.stringify({ type: 'ui.job.update', seq, ts: new Date().toISOString(), payload: job });
      for (const watcher of watchers) if (watcher.readyState === watcher.OPEN) watcher.send(text);
    }
  });
});

server.listen(0, '127.0.0.1', () => console.log(`listens on http://127.0.0.1:${server.address().port}`));
