#!/usr/bin/env bash
# Prints the path of a Python 3.10–3.13 that can make virtual environments and compile extensions, or says what to install.
set -euo pipefail

# 3.11 first: the version that every test runs with.
candidates=("${PYTHON:-python3.11}" python3.11 python3 python3.12 python3.13 python3.10)
complaint="no Python 3.10-3.13 found on PATH"

describe() {
    "$1" - <<'PYTHON' 2>/dev/null
import importlib.util, pathlib, sys, sysconfig
supported = (3, 10) <= sys.version_info[:2] < (3, 14)
has_venv = all(importlib.util.find_spec(name) for name in ("venv", "ensurepip"))
has_headers = (pathlib.Path(sysconfig.get_path("include")) / "Python.h").is_file()
print(int(supported), int(has_venv), int(has_headers), "%d.%d" % sys.version_info[:2], sys.executable)
PYTHON
}

for candidate in "${candidates[@]}"; do
    path=$(command -v "$candidate") || continue
    read -r supported has_venv has_headers version executable < <(describe "$path") || continue
    [[ $supported == 1 ]] || continue
    if [[ $has_venv == 1 && $has_headers == 1 ]]; then
        echo "$executable"
        exit 0
    fi
    complaint="$executable lacks venv or Python.h; on Debian or Ubuntu: apt-get install -y python$version-venv python$version-dev"
done
echo "serverless-triton: $complaint" >&2
[[ $complaint == no* ]] && echo "  on Debian or Ubuntu: apt-get update && apt-get install -y python3 python3-venv python3-dev" >&2
exit 1
