#!/bin/bash
# Real nodes and real links between them; see README.md. Ends with the line "N passed, N failed".
#
#   KONTOR_BIN=target/release/kontor tests/offices/run.sh Outage     an office is cut off
#   KONTOR_BIN=target/release/kontor tests/offices/run.sh Interop    a node and a Synapse
#   KONTOR_BIN=target/release/kontor tests/offices/run.sh Encryption  two people who encrypt, each in an office
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
KONTOR_BIN=$(realpath "${KONTOR_BIN:?the kontor program}")
export KONTOR_BIN
. "$here/../clients/venv.sh"
"$here/../clients/js/install.sh"
exec python -W ignore::ResourceWarning "$here/../clients/run_unittests.py" "$here" "$@"
