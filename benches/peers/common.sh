# What queue/run.sh and flows/run.sh share: installing below $DIR, servers that live as long as the run, and figures.
# Sourced, not run.
# shellcheck shell=bash disable=SC2034

set -euo pipefail

peers=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(cd "$peers/../.." && pwd)

# The comment at the head of the script that is run.
usage() { sed -n '2,/^$/s/^# \{0,1\}//p' "$0"; }

begin() { # begin DIR: where everything is installed and kept
    case "${1:---help}" in -*)
        usage
        exit 0
        ;;
    esac
    mkdir -p "$1"
    DIR=$(cd "$1" && pwd)
    rm -rf "$DIR/data" "$DIR/log" "$DIR/figures.tsv"
    mkdir -p "$DIR/data" "$DIR/log"
    touch "$DIR/figures.tsv"
    servers=()
    trap end EXIT
    trap 'exit 130' INT TERM
}

end() {
    for pid in "${servers[@]}"; do kill "$pid" 2>/dev/null || true; done
    if [ -f "$DIR/data/postgres/postmaster.pid" ]; then
        as_postgres "$postgres/pg_ctl" -D "$DIR/data/postgres" -m fast -w stop >/dev/null || true
    fi
}

say() { printf '%s  %s\n' "$(date +%T)" "$*" >&2; }

# A figure is a line of figures.tsv: peer, database, column, value. A note stands where figures are missing.
note() { # note PEER TEXT
    say "$1: $2"
    printf '%s\t\tnote\t%s\n' "$1" "$2" >>"$DIR/figures.tsv"
}

# The line that most likely says why.
reason() { (grep -m 1 -i error "$1" || tail -n 1 "$1") | cut -c 1-200; }

wanted() { case " ${SKIP:-} " in *" $1 "*) return 1 ;; esac }

# Installing ----------------------------------------------------------------------------------------------------------

install_node() { # install_node PACKAGE@VERSION...: into $DIR/node_modules; $node is Node.js 22, which some peers need
    local machine
    case "$(uname -m)" in aarch64) machine=arm64 ;; *) machine=x64 ;; esac
    set -- "node-linux-$machine@22.23.3" "$@"
    node=$DIR/node_modules/node-linux-$machine/bin/node
    if [ "$(cat "$DIR/node_modules/.wanted" 2>/dev/null)" = "$*" ]; then return; fi
    say "npm: $*"
    npm install --prefix "$DIR" --silent --no-audit --no-fund --save-exact "$@" >>"$DIR/log/npm.log" 2>&1 || return 1
    echo "$*" >"$DIR/node_modules/.wanted"
}

install_python() { # install_python NAME PACKAGE==VERSION...: an environment of its own, $DIR/NAME
    local name=$1
    shift
    if [ "$(cat "$DIR/$name/.wanted" 2>/dev/null)" = "$*" ]; then return; fi
    say "pip: $*"
    python3 -m venv --clear "$DIR/$name" || return 1
    "$DIR/$name/bin/pip" install --quiet "$@" >>"$DIR/log/pip.log" 2>&1 || return 1
    echo "$*" >"$DIR/$name/.wanted"
}

# What cannot be installed is left out, and named below the table.
missing() { # missing REASON PEER...
    local reason=$1
    shift
    for it in "$@"; do
        if wanted "$it"; then
            note "$it" "$reason"
            SKIP="${SKIP:-} $it"
        fi
    done
}

build_ours() { # build_ours BENCH
    if wanted showrunner; then
        say "building Showrunner's bench"
        (cd "$repository" && cargo bench --quiet --locked --bench "$1" --no-run)
    fi
}

# Servers -------------------------------------------------------------------------------------------------------------

# PostgreSQL refuses to run as root.
as_postgres() { if [ "$(id -u)" -eq 0 ]; then (cd / && runuser -u postgres -- "$@"); else "$@"; fi; }

start_postgres() { # a new cluster with the settings it comes with: fsync and synchronous_commit are on
    postgres=$(find /usr/lib/postgresql/*/bin -maxdepth 0 | sort -V | tail -n 1)
    PGPORT=${PGPORT:-54331}
    mkdir -p "$DIR/data/postgres"
    if [ "$(id -u)" -eq 0 ]; then chown postgres "$DIR/data/postgres"; fi
    chmod 700 "$DIR/data/postgres"
    as_postgres "$postgres/initdb" -D "$DIR/data/postgres" --auth trust -U postgres -E UTF8 --locale C \
        >"$DIR/log/initdb"
    as_postgres "$postgres/pg_ctl" -D "$DIR/data/postgres" -w -l "$DIR/data/postgres/log" \
        -o "-p $PGPORT -c listen_addresses=127.0.0.1 -k $DIR/data/postgres" start >/dev/null
    server=postgres://postgres@127.0.0.1:$PGPORT
}

fresh() { # fresh NAME: an empty database
    PGOPTIONS="-c client_min_messages=warning" "$postgres/psql" -q "$server/postgres" \
        -c "DROP DATABASE IF EXISTS $1 WITH (FORCE)" -c "CREATE DATABASE $1"
}

waits_for() { # waits_for PORT: until something listens on it, a minute at most
    for _ in $(seq 240); do
        if (: </dev/tcp/127.0.0.1/"$1") 2>/dev/null; then return; fi
        sleep 0.25
    done
    return 1
}

serve() { # serve PEER PORT COMMAND...: the peer's own server, until stop_serving
    local peer=$1 port=$2
    shift 2
    "$@" >>"$DIR/log/$peer-server" 2>&1 &
    serving=$!
    servers+=("$serving")
    if waits_for "$port"; then return; fi
    note "$peer" "its server did not start: $(reason "$DIR/log/$peer-server")"
    stop_serving
    return 1
}

stop_serving() {
    kill "$serving" 2>/dev/null || true
    wait "$serving" 2>/dev/null || true
}

# Measuring -----------------------------------------------------------------------------------------------------------

measure() { # measure PEER DATABASE COMMAND...: what it prints, a column and its value a line, are figures
    local peer=$1 database=$2 out=$DIR/data/out
    shift 2
    say "round $round of $ROUNDS: $peer, $database"
    if ! timeout "${LIMIT:-600}" "$@" >"$out" 2>"$DIR/data/errors"; then
        note "$peer" "failed on $database in round $round: $(reason "$DIR/data/errors")"
    fi
    cat "$DIR/data/errors" >>"$DIR/log/$peer"
    awk -v OFS='\t' -v peer="$peer" -v database="$database" 'NF == 2 { print peer, database, $1, $2 }' "$out" \
        >>"$DIR/figures.tsv"
}

measure_ours() { # measure_ours BENCH FILE NAME=VALUE...: Showrunner's own bench, on the same disk and server
    local bench=$1 table=$2
    shift 2
    say "round $round of $ROUNDS: Showrunner"
    if ! (cd "$repository" && env "$@" TMPDIR="$DIR/data" SHOWRUNNER_TEST_POSTGRES_URL="$server/postgres" \
        cargo bench --quiet --locked --bench "$bench") >"$table" 2>>"$DIR/log/Showrunner"; then
        note Showrunner "failed in round $round: $(reason "$DIR/log/Showrunner")"
    fi
    cat "$table" >>"$DIR/log/Showrunner"
}

in_rounds() { # in_rounds FUNCTION...: each once a round, there and back, so that a change of the machine meets all
    local order
    for round in $(seq "$ROUNDS"); do
        order=("$@")
        if [ $((round % 2)) -eq 0 ]; then mapfile -t order < <(printf '%s\n' "$@" | tac); fi
        for it in "${order[@]}"; do
            if wanted "${it//_/-}"; then "$it"; fi
        done
    done
}
