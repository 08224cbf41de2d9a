"""What is measured of a queue in Python, the same as in Showrunner's own bench (benches/queue.rs). One process, which
is worker and producer. Prints a column and its value a line.

A peer gives coroutine functions: clear() empties the queue; settle() has the database write down what it holds back;
one(n) and batch(ns) enqueue jobs, batch is None where there is no such thing; open() counts jobs that have not ended;
work(handler, idle) starts a worker, set for a full queue or an idle one, and returns what stops it, or None where the
peer has no such worker.
"""

import asyncio
import os
import statistics
import time

JOBS, SINGLES, LATENCIES = (
    int(os.environ.get(name, count)) for name, count in (("JOBS", 20_000), ("SINGLES", 1_000), ("LATENCIES", 200))
)


async def report(column, run):
    """The median of three runs, as of ours; one that takes more than ten seconds is run once."""
    rates = []
    for _ in range(3):
        count, seconds = await run()
        rates.append(count / seconds)
        if seconds > 10:
            break
    print(column, f"{statistics.median(rates):.1f}", flush=True)


async def measure(clear, settle, one, batch, open, work):
    async def singles(count):
        for n in range(count):
            await one(n)

    async def batches():
        for start in range(0, JOBS, 1_000):
            await batch(range(start, min(start + 1_000, JOBS)))

    async def timed(count, enqueue):
        await clear()
        await settle()
        began = time.perf_counter()
        await enqueue
        return count, time.perf_counter() - began

    async def drain():
        await clear()
        await (batches() if batch else singles(JOBS))
        await settle()
        done = []
        began = time.perf_counter()
        stop = await work(lambda: done.append(None), False)
        while len(done) < JOBS:
            await asyncio.sleep(0.002)
        while await open() > 0:
            await asyncio.sleep(0.001)
        took = time.perf_counter() - began
        await stop()
        return JOBS, took

    await report("enqueue", lambda: timed(SINGLES, singles(SINGLES)))
    if batch:
        await report("batch", lambda: timed(JOBS, batches()))
    await report("drain", drain)
    await clear()
    begun = []
    stop = await work(lambda: begun.append(time.perf_counter()), True)
    if stop is None:
        return
    await asyncio.sleep(1)
    took = []
    for i in range(LATENCIES + 20):
        await asyncio.sleep((15 + i * 37 % 17) / 1_000)  # out of step with whoever polls
        begun.clear()
        sent = time.perf_counter()
        await one(i)
        while not begun:
            await asyncio.sleep(0.001)
        took.append((begun[0] - sent) * 1_000)
    await stop()
    took = sorted(took[20:])
    print("p50", f"{took[len(took) // 2]:.3f}")
    print("p99", f"{took[len(took) * 99 // 100]:.3f}")
