// What is measured of flows in Node.js, the same as in Showrunner's own bench (benches/flows.rs): the median of 50 runs
// from the start to the result, after five that do not count. What is slow is run for ten seconds only, three times at
// least. `flows` is [column, steps, run]; a run returns how many of its steps gave a result. Prints a column and
// milliseconds a line.
const runs = Number(process.env.RUNS ?? 50);

export async function measure(flows) {
  for (const [column, steps, run] of flows) {
    const once = async () => {
      const began = performance.now();
      const given = await run();
      if (given !== steps) throw new Error(`${column}: ${given} of ${steps} steps`);
      return performance.now() - began;
    };
    const warm = performance.now();
    for (let i = 0; i < 5 && (i < 1 || performance.now() - warm < 2_000); i++) await once();
    const took = [];
    const began = performance.now();
    while (took.length < runs && (took.length < 3 || performance.now() - began < 10_000)) took.push(await once());
    took.sort((a, b) => a - b);
    console.log(column, took[(took.length - 1) >> 1].toFixed(3));
  }
  process.exit(0);
}
