# Sourced before each build: finds Rust and the compiler cache, always in the same way, because a changed compiler
# means that RocksDB is compiled once more.

if ! command -v cargo >/dev/null && [ -f "$HOME/.cargo/env" ]; then
    . "$HOME/.cargo/env" # installed in this session, which does not know it yet
fi
if command -v ccache >/dev/null; then
    export CC="${CC:-ccache cc}" CXX="${CXX:-ccache c++}"
    export CCACHE_DIR="${CCACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/kontor/ccache}"
fi
