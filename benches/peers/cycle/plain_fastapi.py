"""What a team would write in Python: one cycle of a control loop as an endpoint, one COUNT a figure.

    python -m venv target/plain && target/plain/bin/pip install fastapi==0.165.0 sqlalchemy==2.0.44 aiosqlite==0.22.1
    target/plain/bin/python benches/peers/cycle/plain_fastapi.py 1000000

Fills a SQLite file with so many rows of thirty days, then calls the endpoint's function, without HTTP, and prints the
median, to be held against `cargo bench -- cycle`.
"""

import asyncio
import random
import sqlite3
import statistics
import sys
import tempfile
import time
from datetime import datetime, timedelta
from pathlib import Path

from fastapi import FastAPI
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

ROWS = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
FOLDER = tempfile.TemporaryDirectory()
FILE = Path(FOLDER.name) / "platform.db"

engine = create_async_engine(f"sqlite+aiosqlite:///{FILE}")
Session = async_sessionmaker(engine, expire_on_commit=False)
app = FastAPI()


class Base(DeclarativeBase):
    id: Mapped[int] = mapped_column(primary_key=True)


class Campaign(Base):
    __tablename__ = "campaigns"
    name: Mapped[str]
    status: Mapped[str] = mapped_column(index=True)
    budget: Mapped[float]


class Clip(Base):
    __tablename__ = "clips"
    status: Mapped[str] = mapped_column(index=True)
    score: Mapped[float]
    created_at: Mapped[datetime] = mapped_column(index=True)


class Job(Base):
    __tablename__ = "jobs"
    status: Mapped[str] = mapped_column(index=True)
    created_at: Mapped[datetime] = mapped_column(index=True)


class PublishLog(Base):
    __tablename__ = "publish_logs"
    status: Mapped[str] = mapped_column(index=True)
    created_at: Mapped[datetime] = mapped_column(index=True)


class Ledger(Base):
    __tablename__ = "ledger"
    kind: Mapped[str]
    detail: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(index=True)


@app.post("/cycle")
async def cycle():
    now = datetime.utcnow()
    hour, day = now - timedelta(hours=1), now - timedelta(days=1)
    async with Session() as session:

        async def count(model, *where):
            return await session.scalar(select(func.count()).select_from(model).where(*where))

        pending = await count(Job, Job.status == "pending")
        running = await count(Job, Job.status == "running")
        failed = await count(Job, Job.status == "failed", Job.created_at > hour)
        done = await count(Job, Job.status == "done", Job.created_at > day)
        oldest = await session.scalar(select(func.min(Job.created_at)).where(Job.status == "pending"))
        published = await count(PublishLog, PublishLog.status == "ok", PublishLog.created_at > day)
        errors = await count(PublishLog, PublishLog.status == "error", PublishLog.created_at > hour)
        rich = (await session.scalars(select(Campaign).where(Campaign.status == "active", Campaign.budget > 100))).all()
        clips = await count(Clip, Clip.status == "ready", Clip.score > 80)
        score = await session.scalar(select(func.avg(Clip.score)).where(Clip.created_at > day)) or 0
        health = max(0, 100 - failed - 2 * errors)
        figures = f"{pending} {running} {done} {oldest} {published} {len(rich)} {clips} {score:.1f}"
        session.add(Ledger(kind="cycle", detail=f"health {health}: {figures}", created_at=now))
        await session.commit()
    return {"health": health}


def fill():
    chance, now = random.Random(1), datetime.utcnow()
    connection = sqlite3.connect(FILE)

    def at():
        return str(now - timedelta(minutes=chance.random() * 60 * 24 * 30))

    def insert(table, rows):
        rows = list(rows) if table == "campaigns" else rows
        marks = {"campaigns": 4, "clips": 4, "jobs": 3, "publish_logs": 3, "ledger": 4}[table]
        connection.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * marks)})", rows)

    statuses = ["done", "failed", "pending", "running"]
    insert("campaigns", ((f"c{n}", chance.choice(["active", "paused"]), chance.random() * 200, n) for n in range(200)))
    insert("jobs", ((chance.choices(statuses, [93, 5, 1.9, 0.1])[0], at(), n) for n in range(ROWS * 4 // 10)))
    insert("publish_logs", ((chance.choices(["ok", "error"], [95, 5])[0], at(), n) for n in range(ROWS * 3 // 10)))
    insert("clips", ((chance.choice(["ready", "draft"]), chance.random() * 100, at(), n) for n in range(ROWS * 2 // 10)))
    insert("ledger", (("action", "x", at(), n) for n in range(ROWS // 10)))
    connection.commit()
    connection.execute("PRAGMA journal_mode = wal")
    connection.close()


async def main():
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    fill()
    times = []
    for turn in range(43):
        began = time.perf_counter()
        await cycle()
        if turn >= 3:
            times.append((time.perf_counter() - began) * 1000)
    print(f"the plain way in FastAPI and SQLAlchemy, {ROWS:,} rows: p50 {statistics.median(times):.1f} ms")
    await engine.dispose()


asyncio.run(main())
