#!/usr/bin/env bash
# Installs what building (build) or testing (test) needs on Debian and Ubuntu; elsewhere says what is missing.
# Says and does nothing when everything is there.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"

packages=() # names in Debian
wanted=()   # the same, for people on other systems

need() { # need PACKAGE DESCRIPTION TEST...: notes the package if the test fails
    local package=$1 description=$2
    shift 2
    if ! "$@" >/dev/null 2>&1; then
        packages+=("$package")
        wanted+=("$description")
    fi
}

has_libclang() {
    [ -n "${LIBCLANG_PATH:-}" ] && return
    if command -v dpkg-query; then
        [ "$(dpkg-query --show --showformat '${db:Status-Status}' libclang-dev)" = installed ]
    else
        compgen -G '/usr/lib*/libclang*' || compgen -G '/usr/lib/llvm*/lib/libclang*' || compgen -G '/opt/*/llvm*/lib/libclang*'
    fi
}

case ${1:-build} in
    build)
        if ! command -v cargo >/dev/null; then
            echo "Rust is missing: install it with rustup, then try again." >&2
            exit 1
        fi
        need g++ "a C++ compiler (c++)" command -v c++
        need clang "clang" command -v clang
        need libclang-dev "libclang with its headers" has_libclang
        need make "make" command -v make
        need ccache "ccache" command -v ccache
        ;;
    test)
        need curl "curl" command -v curl
        need git "git" command -v git
        need python3-venv "Python 3 with venv and pip" python3 -c 'import venv, ensurepip'
        ;;
    *)
        echo "usage: $0 [build|test]" >&2
        exit 2
        ;;
esac
[ ${#packages[@]} -gt 0 ] || exit 0

if ! command -v apt-get >/dev/null; then
    echo "These are missing; install them with the package manager of your system, then try again:" >&2
    printf '  %s\n' "${wanted[@]}" >&2
    exit 1
fi

as_root=()
if [ "$(id -u)" != 0 ]; then
    if ! command -v sudo >/dev/null; then
        echo "Run this as root, then try again: apt-get install ${packages[*]}" >&2
        exit 1
    fi
    as_root=(sudo)
fi
echo "Installing ${packages[*]}"
export DEBIAN_FRONTEND=noninteractive
"${as_root[@]}" apt-get update --quiet
"${as_root[@]}" apt-get install --quiet --yes --no-install-recommends "${packages[@]}"
