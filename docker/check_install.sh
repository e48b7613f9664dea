#!/usr/bin/env bash
# Runs the images' install steps on this host, into a scratch folder, and looks at what came out: check_install.sh [server] [scheduler]
set -euo pipefail
cd "$(dirname "$0")/.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# Away from the source: what is imported has to be what was installed.
inside() { (cd "$scratch" && "$@"); }

check_server() {
    inside "$scratch/server/venv/bin/serverless-triton" --version
    inside "$scratch/server/venv/bin/python" -c "import serverless_triton.loader._core, serverless_triton.backend.agent_server"
    for file in python/libtriton_python.so serverless/model.py serverless/serverless_triton/backend/messages.py; do
        [[ -e $scratch/server/backends/$file ]] || { echo "missing: backends/$file" >&2; return 1; }
    done
}

check_scheduler() {
    inside "$scratch/scheduler/venv/bin/serverless-triton" --version
    inside "$scratch/scheduler/venv/bin/python" -c "import sys, serverless_triton.scheduler.service; assert 'torch' not in sys.modules"
}

[[ $# -gt 0 ]] || set -- server scheduler
for part in "$@"; do
    echo "=== $part"
    docker/install.sh "$scratch/$part" "$part"
    "check_$part"
    echo "$part: ok"
done
