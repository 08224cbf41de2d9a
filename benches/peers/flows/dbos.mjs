// DBOS Transact (TypeScript) on PostgreSQL: workflows of runStep(). https://docs.dbos.dev/typescript
import { DBOS } from '@dbos-inc/dbos-sdk';
import { measure } from './measure.mjs';

DBOS.setConfig({ name: 'flows', systemDatabaseUrl: process.env.DATABASE, logLevel: 'error', runAdminServer: false });

const step = (i) => DBOS.runStep(async () => i, { name: `s${i}` });
const sequential = async () => {
  let given = 0;
  for (let i = 0; i < 40; i++) given += (await step(i)) === i;
  return given;
};
const parallel = async () => (await Promise.all(Array.from({ length: 100 }, (_, i) => step(i)))).length;
const one = async () => [await step(0)].length;

const flows = [['sequential', 40, sequential], ['parallel', 100, parallel], ['one', 1, one]];
const workflows = flows.map(([name, steps, flow]) => [name, steps, DBOS.registerWorkflow(flow, { name })]);
await DBOS.launch();
await measure(workflows);
