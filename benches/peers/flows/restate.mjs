// Restate: a service of the TypeScript SDK, called through the server's ingress. Each ctx.run() is in the server's log
// before the next one begins. https://docs.restate.dev/develop/ts/durable-steps
import * as restate from '@restatedev/restate-sdk';
import * as clients from '@restatedev/restate-sdk-clients';
import { measure } from './measure.mjs';

const { ADMIN, INGRESS, SERVICE_PORT } = process.env;
const step = (ctx, i) => ctx.run(`s${i}`, async () => i);
const handlers = {
  sequential: async (ctx) => {
    let given = 0;
    for (let i = 0; i < 40; i++) given += (await step(ctx, i)) === i;
    return given;
  },
  parallel: async (ctx) => {
    const steps = Array.from({ length: 100 }, (_, i) => step(ctx, i));
    return (await restate.RestatePromise.all(steps)).length;
  },
  one: async (ctx) => [await step(ctx, 0)].length,
};

await restate.serve({ services: [restate.service({ name: 'flows', handlers })], port: Number(SERVICE_PORT) });
const answer = await fetch(`${ADMIN}/deployments`, {
  method: 'POST',
  headers: { 'content-type': 'application/json' },
  body: JSON.stringify({ uri: `http://127.0.0.1:${SERVICE_PORT}`, force: true }),
});
if (!answer.ok) throw new Error(await answer.text());
const flows = clients.connect({ url: INGRESS }).serviceClient({ name: 'flows' });
await measure([
  ['sequential', 40, () => flows.sequential()],
  ['parallel', 100, () => flows.parallel()],
  ['one', 1, () => flows.one()],
]);
