#!/usr/bin/env bash
# Installs what the suite needs and is missing: a Docker engine, which it starts, and a base image.
#
#   complement/deps.sh         does all that; exit code 3: this machine cannot run the suite, and why
#   complement/deps.sh stop    ends the engine, if it was started here
set -euo pipefail
state=${XDG_CACHE_HOME:-$HOME/.cache}/kontor/complement
base=debian:bookworm-slim # what Dockerfile starts from

cannot() {
    printf 'Complement cannot run here: %s\n' "$@" >&2
    exit 3
}

answers() { docker version >/dev/null 2>&1; }

install() { # install PACKAGE...: from Debian's packages, or says what is missing
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || cannot "install $*, then try again"
    echo "Installing $*"
    export DEBIAN_FRONTEND=noninteractive
    {
        apt-get update --quiet
        # The engine is started here, not by the package: containers and CI machines have no init system.
        RUNLEVEL=1 apt-get install --quiet --yes --no-install-recommends "$@"
    } >"$state/install.log" 2>&1 || cannot "installing $* failed; see $state/install.log"
}

stop() {
    local pid
    [ -f "$state/dockerd.pid" ] || return 0
    pid=$(cat "$state/dockerd.pid")
    rm -f "$state/dockerd.pid"
    if [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = dockerd ]; then
        kill -TERM "$pid"
        for _ in $(seq 100); do
            [ -d "/proc/$pid" ] || return 0
            sleep 0.1
        done
        echo "The Docker engine (process $pid) does not end" >&2
    fi
}

start() {
    echo "Starting the Docker engine (its log is $state/dockerd.log)"
    # A session of its own, so that it does not end with the terminal and holds nobody's output open.
    setsid dockerd >"$state/dockerd.log" 2>&1 </dev/null &
    echo $! >"$state/dockerd.pid"
    for _ in $(seq 300); do
        if answers; then
            return
        fi
        [ -d "/proc/$(cat "$state/dockerd.pid")" ] || break
        sleep 0.1
    done
    stop
    cannot "the Docker engine does not start; the end of $state/dockerd.log says why:" "$(tail -n 3 "$state/dockerd.log")"
}

# Debian's own installer makes the base where no registry of images can be reached.
make_base() {
    local root
    docker image inspect "$base" >/dev/null 2>&1 && return
    echo "Getting the base image $base"
    timeout 120 docker pull --quiet "$base" >/dev/null 2>&1 && return
    command -v debootstrap >/dev/null || install debootstrap
    [ "$(id -u)" = 0 ] || cannot "no registry of images answers, and making a base image needs root"
    echo "No registry of images answers: making the base with debootstrap"
    root=$(mktemp -d)
    debootstrap --variant=minbase --include=openssl bookworm "$root" >"$state/debootstrap.log" 2>&1 \
        || cannot "debootstrap failed; see $state/debootstrap.log"
    tar --directory "$root" --create . | docker import - "$base" >/dev/null
    rm -rf "$root"
}

mkdir -p "$state"
if [ "${1:-}" = stop ]; then
    stop
    exit
fi

command -v go >/dev/null || cannot "install Go 1.25 or newer, then try again"
version=$(go env GOVERSION)
[ "$(printf '%s\n' go1.25 "$version" | sort --version-sort | head -n 1)" = go1.25 ] \
    || cannot "Go is $version; install 1.25 or newer, then try again"
command -v python3 >/dev/null || install python3
if ! answers; then
    command -v dockerd >/dev/null || install docker.io
    command -v docker >/dev/null || install docker-cli # newer releases of Debian ship it apart
    [ "$(id -u)" = 0 ] || cannot "no Docker engine answers; start it, or run this as root"
    start
fi
make_base
docker run --rm "$base" true >"$state/run.log" 2>&1 \
    || cannot "the Docker engine answers, but starts no container:" "$(tail -n 3 "$state/run.log")"

# The suite is a Go module like any other.
cd "$(dirname "${BASH_SOURCE[0]}")"
go mod download github.com/matrix-org/complement 2>"$state/download.log" \
    || cannot "the suite could not be downloaded:" "$(tail -n 3 "$state/download.log")"
