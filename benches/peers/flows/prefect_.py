"""Prefect against its own server: flows of tasks whose results are kept (persist_result; they are written to files,
without a sync), and whose states are in the server's SQLite file (synchronous NORMAL). https://docs.prefect.io"""

import asyncio

from prefect import flow, task
from prefect.task_runners import ThreadPoolTaskRunner

from measure import measure


@task(persist_result=True)
def step(i):
    return i


@flow(persist_result=True)
def sequential():
    return sum(step(i) == i for i in range(40))


@flow(persist_result=True, task_runner=ThreadPoolTaskRunner(max_workers=10))
def parallel():
    return len([it.result() for it in step.map(range(100))])


@flow(persist_result=True)
def one():
    return len([step(0)])


def runs(flow):
    async def run():
        return await asyncio.to_thread(flow)

    return run


asyncio.run(measure([("sequential", 40, runs(sequential)), ("parallel", 100, runs(parallel)), ("one", 1, runs(one))]))
