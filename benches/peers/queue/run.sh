#!/usr/bin/env bash
# Queues that a user would pick instead, beside Showrunner's own (cargo bench --bench queue), in one run:
#
#     benches/peers/queue/run.sh DIR
#
# Everything is installed beneath DIR, which should be on a real disk: a PostgreSQL cluster with the settings that it
# comes with, a Redis that syncs every write, and the peers, in pinned versions:
#
#     PostgreSQL  graphile-worker, graphile_worker (Rust), pg-boss, apalis-postgres, procrastinate
#     Redis       BullMQ
#     SQLite      huey, litequeue, apalis-sqlite; synchronous FULL, as Showrunner's
#
# Each round runs all of them, one after the other. Each runs everything three times a round, as our bench does, and
# gives the median; of what takes more than ten seconds there is one run. The table has the medians of all rounds.
#
# Needs cargo, Node.js with npm, Python 3.10 with venv, PostgreSQL's programs, Redis, and the registries of these
# languages. Options, by environment:
#
#     ROUNDS=3                  rounds
#     JOBS=20000                jobs of a drain and of enqueueing in batches; the peers' only, ours has 20,000
#     SINGLES=1000              jobs that are enqueued one by one; the peers' only
#     LATENCIES=200             jobs of an idle queue; the peers' only
#     SKIP="bullmq showrunner"  leaves these out: showrunner, graphile-worker, graphile-worker-rust, pg-boss,
#                               apalis-postgres, bullmq, procrastinate, huey, litequeue, apalis-sqlite

. "$(dirname "$0")/../common.sh"
begin "$@"
ROUNDS=${ROUNDS:-3}
export JOBS SINGLES LATENCIES
: "${JOBS:=20000}" "${SINGLES:=1000}" "${LATENCIES:=200}"

build_ours queue
install_node graphile-worker@0.18.0 pg-boss@12.38.0 bullmq@6.7.0 ioredis@6.0.0 pg@8.23.1 ||
    missing "npm could not install it" graphile-worker pg-boss bullmq
# litequeue 0.10 and newer need Python 3.12.
install_python python procrastinate==3.10.0 'psycopg[binary,pool]==3.3.9' huey==3.5.4 litequeue==0.9 ||
    missing "pip could not install it" procrastinate huey litequeue
if wanted graphile-worker-rust || wanted apalis-postgres || wanted apalis-sqlite; then
    say "building the peers in Rust"
    (cd "$peers/queue/rust" && CARGO_TARGET_DIR="$DIR/target" cargo build --quiet --release --locked) ||
        missing "cargo could not build it" graphile-worker-rust apalis-postgres apalis-sqlite
fi
cp "$peers"/queue/*.mjs "$peers"/queue/*.py "$DIR" # beside their packages

start_postgres
if command -v redis-server >/dev/null; then
    export REDIS_PORT=${REDIS_PORT:-63791}
    mkdir "$DIR/data/redis"
    redis-server --bind 127.0.0.1 --port "$REDIS_PORT" --dir "$DIR/data/redis" --appendonly yes --appendfsync always \
        --maxmemory-policy noeviction >"$DIR/log/redis" &
    servers+=($!)
    waits_for "$REDIS_PORT"
else
    missing "there is no redis-server" bullmq
fi

# Our bench measures both databases in one run.
showrunner() {
    local table=$DIR/data/showrunner
    measure_ours queue "$table" SHOWRUNNER_BENCH_KEPT=0
    awk -F ' *[|] *' -v OFS='\t' '
        $3 == "enqueue one by one" { print "Showrunner", $2, "enqueue", $4 }
        $3 == "enqueue in batches of 1,000" { print "Showrunner", $2, "batch", $4 }
        $3 == "drain of 20,000" { print "Showrunner", $2, "drain", $4 }
        $3 ~ /^from enqueueing to start/ { print "Showrunner", $2, "p50", $4; print "Showrunner", $2, "p99", $6 }
    ' "$table" >>"$DIR/figures.tsv"
}

on_postgres() { # on_postgres PEER COMMAND...
    local peer=$1
    shift
    fresh peer
    DATABASE=$server/peer measure "$peer" PostgreSQL "$@"
}

on_sqlite() { # on_sqlite PEER COMMAND...
    local peer=$1
    shift
    rm -f "$DIR"/data/peer.db*
    DATABASE=$DIR/data/peer.db measure "$peer" SQLite "$@"
}

rust=$DIR/target/release/queue-peers
python=$DIR/python/bin/python

graphile_worker() { on_postgres graphile-worker "$node" "$DIR/graphile-worker.mjs"; }
graphile_worker_rust() { on_postgres graphile-worker-rust "$rust" graphile_worker; }
pg_boss() { on_postgres pg-boss "$node" "$DIR/pg-boss.mjs"; }
apalis_postgres() { on_postgres apalis-postgres "$rust" apalis-postgres; }
procrastinate() { on_postgres procrastinate "$python" "$DIR/procrastinate_.py"; }
bullmq() { measure bullmq Redis "$node" "$DIR/bullmq.mjs"; }
huey() { on_sqlite huey "$python" "$DIR/huey_.py"; }
litequeue() { on_sqlite litequeue "$python" "$DIR/litequeue_.py"; }
apalis_sqlite() { on_sqlite apalis-sqlite "$rust" apalis-sqlite; }

in_rounds showrunner graphile_worker graphile_worker_rust pg_boss apalis_postgres procrastinate bullmq \
    apalis_sqlite huey litequeue

python3 "$peers/table.py" "$DIR/figures.tsv" 'enqueue=enqueue one by one, jobs/s' 'batch=in batches of 1,000, jobs/s' \
    "drain=drain of $JOBS, jobs/s" 'p50=idle, enqueued to started, p50 ms' 'p99=the same, p99 ms'
