"""procrastinate on PostgreSQL: one worker of 20 at a time, told by NOTIFY, that deletes what has succeeded.
https://procrastinate.readthedocs.io/en/stable/howto/basics/worker.html"""

import asyncio
import logging
import os

import procrastinate
import psycopg

from measure import measure

logging.disable(logging.CRITICAL)
connector = procrastinate.PsycopgConnector(conninfo=os.environ["DATABASE"], min_size=4, max_size=24)
app = procrastinate.App(connector=connector)
handler = None


@app.task(name="noop")
async def noop(n):
    handler()


async def sql(text):
    async with await psycopg.AsyncConnection.connect(os.environ["DATABASE"], autocommit=True) as connection:
        await connection.execute(text)


async def settle():
    await sql("VACUUM ANALYZE")
    await sql("CHECKPOINT")


async def batch(ns):
    await noop.batch_defer_async(*[{"n": n} for n in ns])


async def open_jobs():
    text = "SELECT count(*) AS n FROM procrastinate_jobs WHERE status IN ('todo', 'doing')"
    return (await app.connector.execute_query_one_async(text))["n"]


async def work(does, idle):
    global handler
    handler = does
    worker = app.run_worker_async(concurrency=20, install_signal_handlers=False, delete_jobs="successful")
    worker = asyncio.create_task(worker)

    async def stop():
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)

    return stop


async def main():
    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        await measure(
            clear=lambda: sql("TRUNCATE procrastinate_jobs CASCADE"),
            settle=settle,
            one=lambda n: noop.defer_async(n=n),
            batch=batch,
            open=open_jobs,
            work=work,
        )


asyncio.run(main())
