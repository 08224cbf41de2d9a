"""What is measured of flows in Python, the same as in Showrunner's own bench (benches/flows.rs): the median of 50 runs
from the start to the result, after five that do not count. What is slow is run for ten seconds only, three times at
least. `flows` is (column, steps, run); a coroutine function run returns how many of its steps gave a result. Prints a
column and milliseconds a line."""

import os
import time

RUNS = int(os.environ.get("RUNS", "50"))


async def measure(flows):
    for column, steps, run in flows:

        async def once():
            began = time.perf_counter()
            given = await run()
            assert given == steps, f"{column}: {given} of {steps} steps"
            return (time.perf_counter() - began) * 1_000

        warm = time.perf_counter()
        for i in range(5):
            if i == 0 or time.perf_counter() - warm < 2:
                await once()
        took = []
        began = time.perf_counter()
        while len(took) < RUNS and (len(took) < 3 or time.perf_counter() - began < 10):
            took.append(await once())
        print(column, f"{sorted(took)[(len(took) - 1) // 2]:.3f}", flush=True)
