#!/usr/bin/env bash
# What both images and check_install.sh install with: install.sh PREFIX server|scheduler
# Makes PREFIX/venv with the wheel and its packages; for a server also PREFIX/backends, to look at what its Triton gets.
set -euo pipefail
prefix=$1
part=$2
source=$(cd "$(dirname "$0")/.." && pwd)
venv=$prefix/venv

case $part in
    server) requirements=(build -) ;;
    scheduler) requirements=(build scheduler) ;;
    *)
        echo "install.sh: $part is neither server nor scheduler" >&2
        exit 2
        ;;
esac

mkdir -p "$prefix"
"$source/scripts/create_venv.sh" "$venv"
"$source/scripts/install_packages.sh" "$venv" "${requirements[@]}"
echo "[3/3] serverless-triton"
PATH=$venv/bin:$PATH "$venv/bin/python" -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation \
    --config-settings=build-dir="$prefix/build" "$source"
rm -rf "$prefix/build"

if [[ $part == server ]]; then
    "$venv/bin/python" - "$prefix/backends" <<'PYTHON'
import sys
from pathlib import Path
from serverless_triton.backend.triton_install import assemble_backend_directory, find_triton

installation = find_triton(report=print)
print(f"Triton {installation.version}: {installation.server}")
assemble_backend_directory(installation, Path(sys.argv[1]))
PYTHON
fi
