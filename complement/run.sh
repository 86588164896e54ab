#!/usr/bin/env bash
# Runs Complement, the acceptance suite of Matrix homeservers, unmodified against an image of this node.
#
#   complement/run.sh                           all of it: writes results.jsonl and the tables of README.md, unless
#                                               something got worse (--accept writes them all the same)
#   complement/run.sh 'TestSync|TestRoom.*'     the groups that match, of all packages: compares only
#   complement/run.sh 'TestSync' tests/csapi    the same, in these packages ("." matches every group)
#   KONTOR_BIN=target/debug/kontor complement/run.sh ...    with this program instead of building one
#
# Exit code 1: something got worse, or better and was not written down. 3: the suite cannot run on this machine.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/env.sh
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/target}"
module=github.com/matrix-org/complement
image=kontor-complement
out=$CARGO_TARGET_DIR/complement

accept=()
if [ "${1:-}" = --accept ]; then
    accept=(--accept)
    shift
fi
pattern=${1:-}
packages=("${@:2}")

complement/deps.sh
if [ -n "${KONTOR_BIN:-}" ]; then
    bin=$KONTOR_BIN
else
    cargo build --release --locked
    bin=$CARGO_TARGET_DIR/release/kontor
fi

rm -rf "$out"
mkdir -p "$out/image" "$out/logs"
strip -o "$out/image/kontor" "$bin"
cp complement/Dockerfile complement/start.sh "$out/image/"
echo "Building the image from $bin"
docker build --tag "$image" "$out/image" >"$out/build.log" 2>&1 || {
    cat "$out/build.log" >&2
    exit 1
}
# A mistake in the image's configuration would fail every test after half a minute each. The authority is for this once.
docker run --rm --env KONTOR_SERVER__NAME=hs1 --entrypoint bash "$image" -c '
    mkdir -p /complement/ca && cd /complement/ca \
        && openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.crt -days 1 -subj /CN=once 2>/dev/null \
        && kontor config' >"$out/config.toml" || {
    cat "$out/config.toml" >&2
    exit 1
}
docker image prune --force --filter label=org.kontor.image=complement >/dev/null

cd complement
if [ ${#packages[@]} -eq 0 ]; then
    mapfile -t packages < <(go list -f '{{if .TestGoFiles}}{{.ImportPath}}{{end}}' "$module/tests/...")
else
    packages=("${packages[@]/#/$module/}")
fi
export COMPLEMENT_BASE_IMAGE=$image COMPLEMENT_ENABLE_DIRTY_RUNS=1 COMPLEMENT_HOST_MOUNTS="$out/logs:/logs"
# One package after the other: each has servers of its own, and some tests wait for things within seconds.
# These stop a server and start it again. When one fails in between, the server stays down for all that come after it and
# use it too, so they come last.
last='^(TestDeviceListsUpdateOverFederation|TestToDeviceMessagesOverFederation)$'
suite() { go test -json -p 1 -count 1 -timeout 60m "$@" 2>>"$out/go.log"; }
run() {
    if [ -n "$pattern" ]; then
        suite -run "^($pattern)$" "${packages[@]}"
    else
        suite -skip "$last" "${packages[@]}"
        suite -run "$last" "${packages[@]}"
    fi
}
set +e # a red test is for verdict.py to judge
run | python3 verdict.py "$out" ${pattern:+--part} "${accept[@]}"
code=${PIPESTATUS[1]}
[ -s "$out/go.log" ] && cat "$out/go.log" >&2
exit "$code"
