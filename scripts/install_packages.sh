#!/usr/bin/env bash
# Installs what pyproject.toml asks for at the versions of constraints.txt: install_packages.sh VENV EXTRA...
# (`-` is the base requirements, `scheduler` those of a machine without engines). It doesn't install the project itself: scripts/install_project.sh does.
set -euo pipefail
venv=$1
shift
cd "$(dirname "$0")/.."
log=$venv/packages.log
: >"$log"

pip_install() {
    "$venv/bin/python" -m pip install --disable-pip-version-check --no-input -c constraints.txt "$@" 2>&1 | tee -a "$log" |
        awk '/^ *Downloading .* MB\)/ { split($2, name, "-"); print "      " name[1], $(NF - 1), $NF; fflush() }
             /^Installing collected/ { print "      installing", NF - 3, "packages"; fflush() }'
}

fail() {
    grep -E "ERROR|error:" "$log" | tail -5 >&2
    echo "serverless-triton: $1; the whole log: $log" >&2
    exit 1
}

# auto (CPU where no NVIDIA GPU is seen), cpu, or cuda: images are built where no GPU is seen.
torch_build=${SERVERLESS_TRITON_TORCH:-auto}
if [[ $torch_build == auto ]]; then
    torch_build=cpu
    if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then torch_build=cuda; fi
fi

torch_version=$(sed -n 's/^torch==//p' constraints.txt)
install_torch() {
    if [[ $torch_build == cuda ]]; then
        pip_install "torch==$torch_version"
    else
        # Where pip doesn't find the CPU build by itself, the user can name an index that has it.
        pip_install ${SERVERLESS_TRITON_TORCH_INDEX:+--extra-index-url "$SERVERLESS_TRITON_TORCH_INDEX"} "torch==$torch_version+cpu" ||
            { echo "      no CPU build of torch found: installing the CUDA build (about 3 GB)" && pip_install "torch==$torch_version"; }
    fi
}

echo "[2/3] packages (a minute or two; log: $log)"
"$venv/bin/python" scripts/requirements.py "$@" >"$venv/requirements.txt"
! grep -q '^torch' "$venv/requirements.txt" || install_torch || fail "torch could not be installed"
pip_install -r "$venv/requirements.txt" || fail "packages could not be installed"
