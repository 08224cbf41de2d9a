"""DBOS Transact (Python) on PostgreSQL or SQLite: workflows of @DBOS.step. On SQLite it leaves the journal and
`synchronous` as they are in a new file, which is durable. https://docs.dbos.dev/python"""

import asyncio
import os

from dbos import DBOS

from measure import measure

DBOS(config={"name": "flows", "system_database_url": os.environ["DATABASE"], "log_level": "ERROR"})


@DBOS.step()
async def step(i):
    return i


@DBOS.workflow()
async def sequential():
    given = 0
    for i in range(40):
        given += await step(i) == i
    return given


@DBOS.workflow()
async def parallel():
    return len(await asyncio.gather(*[step(i) for i in range(100)]))


@DBOS.workflow()
async def one():
    return len([await step(0)])


DBOS.launch()
asyncio.run(measure([("sequential", 40, sequential), ("parallel", 100, parallel), ("one", 1, one)]))
os._exit(0)
