"""huey on SQLite (WAL, synchronous FULL). It has no enqueueing in batches. Its consumer runs in this process, as
huey_consumer would run it, and an idle one looks every 10 ms (by default it waits up to 10 s).
huey forgets a job when its worker takes it, before it has run: a killed worker loses it.
https://huey.readthedocs.io/en/latest/consumer.html"""

import asyncio
import logging
import os

from huey import SqliteHuey

from measure import measure

logging.disable(logging.CRITICAL)
huey = SqliteHuey("queue", filename=os.environ["DATABASE"], results=False, fsync=True)
assert huey.storage.conn.execute("PRAGMA synchronous").fetchone()[0] == 2
handler = None


@huey.task()
def noop(n):
    handler()


async def clear():
    huey.flush()


async def settle():
    huey.storage.conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


async def one(n):
    noop(n)


async def open_jobs():
    return huey.pending_count()


async def work(does, idle):
    global handler
    handler = does
    polling = {"initial_delay": 0.01, "max_delay": 0.01}
    consumer = huey.create_consumer(workers=1, periodic=False, **polling)
    consumer.start()

    async def stop():
        consumer.stop(graceful=True)

    return stop


asyncio.run(measure(clear, settle, one, None, open_jobs, work))
