#!/bin/bash
# Real clients and bad input against a running server; see README.md. Ends with the line "N passed, N failed".
#
#   KONTOR_BIN=target/release/kontor tests/clients/run.sh      starts that server on a free port, with data of its own
#   HOMESERVER_URL=http://127.0.0.1:8008 tests/clients/run.sh  uses the server that is there
#   SUITES="js python bad_input"                               only these; rust_sdk only if it is named here
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
suites=${SUITES:-js python bad_input}

# Everything about the server lies in $work: kontor.toml, data, server.log, pid, and exit (its code, once it has ended).
# The server reads KONTOR_* as its configuration, so it must not see ours.
start_server() {
    rm -f "$work/exit"
    (
        unset KONTOR_BIN KONTOR_PID
        "$bin" serve --config "$work/kontor.toml" >>"$work/server.log" 2>&1 </dev/null &
        echo $! >"$work/pid"
        code=0
        wait $! || code=$?
        echo "$code" >"$work/exit"
    ) >/dev/null 2>&1 </dev/null &
    for _ in $(seq 300); do
        curl -sf -o /dev/null "$url/_matrix/client/versions" && return
        [ ! -f "$work/exit" ] || break
        sleep 0.1
    done
    echo "the server does not answer at $url" >&2
    return 1
}

# Sends the signal and waits up to the seconds given for the end of the server.
end_server() {
    [ -f "$work/pid" ] && [ ! -f "$work/exit" ] || return 0
    kill "-$1" "$(cat "$work/pid")" 2>/dev/null || true
    for _ in $(seq $(($2 * 20))); do
        [ ! -f "$work/exit" ] || return 0
        sleep 0.05
    done
    return 1
}

# What RESTART_CMD calls: a power cut, as far as a process can have one.
if [ "${1:-}" = --restart ]; then
    work=$2 bin=$3 url=$4
    end_server KILL 10
    start_server
    exit
fi

passed=0 failed=0
count() { # count NAME COMMAND...: runs a suite and adds up its last line
    local name=$1 out last
    shift
    echo "== $name"
    out=$(mktemp)
    "$@" 2>&1 | tee "$out" || true
    last=$(tail -n 1 "$out")
    rm -f "$out"
    if [[ $last =~ ^([0-9]+)\ passed,\ ([0-9]+)\ failed$ ]]; then
        passed=$((passed + BASH_REMATCH[1])) failed=$((failed + BASH_REMATCH[2]))
    else
        echo "FAIL  $name did not come to its end"
        failed=$((failed + 1))
    fi
}
verdict() { # verdict NAME COMMAND...: one test of our own
    local name=$1
    shift
    if "$@"; then
        echo "ok    $name"
        passed=$((passed + 1))
    else
        echo "FAIL  $name"
        failed=$((failed + 1))
    fi
}

. "$here/venv.sh"
"$here/js/install.sh"
# A few minutes of compilation the first time.
rust_target=${XDG_CACHE_HOME:-$HOME/.cache}/kontor/rust-sdk-target
if [[ " $suites " = *" rust_sdk "* ]]; then
    (
        . "$here/../../scripts/env.sh"
        CARGO_TARGET_DIR=$rust_target cargo build --locked --quiet --manifest-path "$here/rust-sdk/Cargo.toml"
    )
fi

ours=
if [ -z "${HOMESERVER_URL:-}" ]; then
    bin=$(realpath "${KONTOR_BIN:?the kontor program, or HOMESERVER_URL for a server that is there}")
    ours=1
    work=$(mktemp -d)
    trap 'end_server KILL 10; rm -rf "$work"' EXIT
    port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    url=http://127.0.0.1:$port
    cat >"$work/kontor.toml" <<TOML
[server]
name = "localhost"
data_dir = "$work/data"

[listen]
http = "127.0.0.1:$port"

[registration]
mode = "open"

[limits]
enabled = false
TOML
    start_server || { tail -n 50 "$work/server.log"; exit 1; }
    export HOMESERVER_URL=$url
    export RESTART_CMD="'$here/run.sh' --restart '$work' '$bin' '$url'"
fi

javascript() {
    cd "$here/js"
    timeout 900 node --test --test-force-exit --test-concurrency=1 --test-reporter=./reporter.js
}
graceful_stop() { end_server TERM 5 && [ "$(cat "$work/exit")" = 0 ]; }

for suite in $suites; do
    [ -z "$ours" ] || KONTOR_PID=$(cat "$work/pid")
    case $suite in
        js) count "matrix-js-sdk" javascript ;;
        python) count "matrix-nio" timeout 900 python "$here/run_unittests.py" "$here/python" ;;
        rust_sdk) count "matrix-rust-sdk" timeout 900 "$rust_target/debug/rust-sdk" ;;
        bad_input)
            count "bad input" env ${KONTOR_PID:+KONTOR_PID=$KONTOR_PID} \
                timeout 900 python "$here/run_unittests.py" "$here/bad_input"
            ;;
        *) echo "no suite $suite" >&2; exit 2 ;;
    esac
done
if [ -n "$ours" ]; then
    echo "== the end"
    verdict "the server is still the same process" [ ! -f "$work/exit" ]
    verdict "SIGTERM ends the server with 0 in under 5 s" graceful_stop
    verdict "the store checks clean" env -u KONTOR_BIN -u KONTOR_PID "$bin" check --config "$work/kontor.toml"
    [ "$failed" = 0 ] || { echo "== the end of the server's log"; tail -n 50 "$work/server.log"; }
fi
echo "$passed passed, $failed failed"
[ "$failed" = 0 ] && [ "$passed" != 0 ]
