"""litequeue on SQLite (WAL; synchronous FULL, where its default is NORMAL). It is a library without a worker: a drain
is pop() and done() in a loop, and there is nothing to be idle. https://github.com/litements/litequeue"""

import asyncio
import os

from litequeue import LiteQueue

from measure import measure

queue = LiteQueue(os.environ["DATABASE"])
queue.conn.execute("PRAGMA synchronous = FULL")
assert queue.conn.execute("PRAGMA synchronous").fetchone()[0] == 2


async def clear():
    queue.conn.execute(f"DELETE FROM {queue.table}")


async def settle():
    queue.conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


async def one(n):
    queue.put(f'{{"n":{n}}}')


async def batch(ns):
    with queue.transaction():
        for n in ns:
            queue.put(f'{{"n":{n}}}')


async def open_jobs():
    return queue.qsize()


async def work(handler, idle):
    if idle:
        return None
    while message := queue.pop():
        handler()
        queue.done(message.message_id)

    async def stop():
        pass

    return stop


asyncio.run(measure(clear, settle, one, batch, open_jobs, work))
