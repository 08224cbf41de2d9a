// What is measured of a queue in Node.js, the same as in Showrunner's own bench (benches/queue.rs). One worker process,
// which is also the producer. Prints a column and its value a line.
//
// A peer gives: clear() empties the queue; one(n) and batch(ns) enqueue jobs of {n}; settle() has the server write down
// what it holds back; open() counts jobs that have not ended; work(handler, idle) starts a worker, set for a full queue
// or an idle one, and returns what stops it.
const jobs = Number(process.env.JOBS ?? 20_000);
const singles = Number(process.env.SINGLES ?? 1_000);
const latencies = Number(process.env.LATENCIES ?? 200);

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const sorted = (figures) => figures.sort((a, b) => a - b);

// The median of three runs, as of ours; one that takes more than ten seconds is run once.
async function print(column, run) {
  const rates = [];
  for (let i = 0; i < 3; i++) {
    const [count, ms] = await run();
    rates.push((count / ms) * 1_000);
    if (ms > 10_000) break;
  }
  console.log(column, sorted(rates)[rates.length >> 1].toFixed(1));
}

export async function measure({ clear, settle, one, batch, open, work }) {
  const batches = async () => {
    for (let from = 0; from < jobs; from += 1_000) {
      await batch(Array.from({ length: Math.min(1_000, jobs - from) }, (_, n) => from + n));
    }
  };
  await print('enqueue', async () => {
    await clear();
    await settle();
    const began = performance.now();
    for (let n = 0; n < singles; n++) await one(n);
    return [singles, performance.now() - began];
  });
  await print('batch', async () => {
    await clear();
    await settle();
    const began = performance.now();
    await batches();
    return [jobs, performance.now() - began];
  });
  await print('drain', async () => {
    await clear();
    await batches();
    await settle();
    let done = 0;
    const began = performance.now();
    const stop = await work(() => done++, false);
    while (done < jobs) await sleep(1);
    while ((await open()) > 0) await sleep(1);
    const took = performance.now() - began;
    await stop();
    return [jobs, took];
  });
  await clear();
  let begun = 0;
  const stop = await work(() => (begun = performance.now()), true);
  await sleep(1_000);
  const took = [];
  for (let i = 0; i < latencies + 20; i++) {
    await sleep(15 + ((i * 37) % 17)); // out of step with whoever polls
    begun = 0;
    const sent = performance.now();
    await one(i, true);
    while (begun === 0) await sleep(0);
    if (i >= 20) took.push(begun - sent);
  }
  await stop();
  sorted(took);
  console.log('p50', took[Math.floor(took.length / 2)].toFixed(3));
  console.log('p99', took[Math.floor((took.length * 99) / 100)].toFixed(3));
  process.exit(0);
}
