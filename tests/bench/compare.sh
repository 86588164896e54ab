#!/usr/bin/env bash
# Measures this node beside a Synapse on SQLite and one on PostgreSQL, all in one run and all durable.
#
#   tests/bench/compare.sh HSBENCH SYNAPSE OUT [hsbench options]
#
# HSBENCH is the load generator's program, SYNAPSE the script that starts a Synapse, OUT a new directory for data,
# logs and results.json.
set -euo pipefail
[ $# -ge 3 ] || { sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2; }
hsbench=$1 synapse=$2 out=$3
shift 3
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/kontor/target}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
[ ! -e "$out" ] || { echo "$out exists; name a new directory" >&2; exit 2; }
mkdir -p "$out/kontor"
out=$(cd "$out" && pwd)

(cd "$here" && . scripts/env.sh && cargo build --release --locked)
(
    cd "$out/kontor"
    KONTOR_LISTEN__HTTP=127.0.0.1:18200 KONTOR_REGISTRATION__MODE=open KONTOR_LIMITS__ENABLED=false \
        KONTOR_LOG__LEVEL=warn exec "$CARGO_TARGET_DIR/release/kontor" serve >node.out 2>node.log
) &
kontor=$!
stop() {
    kill "$kontor" 2>/dev/null || true
    "$synapse" stop "$out/synapse-sqlite" || true
    "$synapse" stop "$out/synapse-postgres" || true
    wait "$kontor" 2>/dev/null || true
}
trap stop EXIT
pids() { cat "$1"/*.pid | paste -sd, -; }
"$synapse" 8101 "$out/synapse-sqlite"
"$synapse" 8102 "$out/synapse-postgres" postgres

"$hsbench" run sqlite=http://127.0.0.1:8101 postgres=http://127.0.0.1:8102 kontor=http://127.0.0.1:18200 \
    --pid "sqlite:$(pids "$out/synapse-sqlite")" --pid "postgres:$(pids "$out/synapse-postgres")" --pid "kontor:$kontor" \
    --datadir "sqlite:$out/synapse-sqlite" --datadir "postgres:$out/synapse-postgres" --datadir "kontor:$out/kontor/data" \
    --json "$out/results.json" "$@"
