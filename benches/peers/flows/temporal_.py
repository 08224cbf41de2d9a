"""Temporal, by the Python SDK against a development server: workflows of activities. (Local activities would be
faster, but are not durable one by one.) https://docs.temporal.io/develop/python"""

import asyncio
import os
import uuid
from datetime import timedelta

from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.worker import Worker

SOON = timedelta(seconds=30)


@activity.defn
async def step(i: int) -> int:
    return i


@workflow.defn
class Sequential:
    @workflow.run
    async def run(self) -> int:
        given = 0
        for i in range(40):
            given += await workflow.execute_activity(step, i, start_to_close_timeout=SOON) == i
        return given


@workflow.defn
class Parallel:
    @workflow.run
    async def run(self) -> int:
        steps = [workflow.execute_activity(step, i, start_to_close_timeout=SOON) for i in range(100)]
        return len(await asyncio.gather(*steps))


@workflow.defn
class One:
    @workflow.run
    async def run(self) -> int:
        return len([await workflow.execute_activity(step, 0, start_to_close_timeout=SOON)])


async def main():
    from measure import measure

    client = await Client.connect(os.environ["TEMPORAL"])

    def runs(flow):
        return lambda: client.execute_workflow(flow.run, id=str(uuid.uuid4()), task_queue="flows")

    options = {"workflows": [Sequential, Parallel, One], "activities": [step], "max_concurrent_activities": 200}
    async with Worker(client, task_queue="flows", **options):
        await measure([("sequential", 40, runs(Sequential)), ("parallel", 100, runs(Parallel)), ("one", 1, runs(One))])


if __name__ == "__main__":
    asyncio.run(main())
