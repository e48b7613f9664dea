#!/usr/bin/env bash
# Builds the C++ core and installs the project for editing: install_project.sh VENV
set -euo pipefail
venv=$1
cd "$(dirname "$0")/.."
log=$venv/project.log

echo "[3/3] C++ core (log: $log)"
# cmake and ninja are those of the environment, so that nothing but a compiler is asked of the system.
PATH=$(cd "$venv/bin" && pwd):$PATH
export PATH
if ! python -m pip install --disable-pip-version-check --no-deps --no-build-isolation -v -e . >"$log" 2>&1; then
    grep -E "error|Error|ERROR" "$log" | head -20 >&2
    echo "serverless-triton: the build failed; the whole log: $log" >&2
    exit 1
fi
