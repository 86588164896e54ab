#!/bin/bash
# Installs what the JavaScript tests need beside Node, once, and again when something else is wanted.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
if ! cmp -s package-lock.json node_modules/.installed; then
    npm ci --silent
    cp package-lock.json node_modules/.installed
fi
