#!/usr/bin/env bash
# Creates the virtual environment that every make target works in: create_venv.sh DIRECTORY
set -euo pipefail
venv=$1
cd "$(dirname "$0")/.."

if ! command -v g++ >/dev/null; then
    echo "serverless-triton: g++ is missing (a C++20 compiler); on Debian or Ubuntu: apt-get update && apt-get install -y g++" >&2
    exit 1
fi
python=$(scripts/find_python.sh)
echo "[1/3] virtual environment $venv with $("$python" --version) ($python)"
"$python" -m venv --clear "$venv"
