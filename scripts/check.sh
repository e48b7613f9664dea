#!/usr/bin/env bash
# What `make check` runs, here and in CI alike: check.sh C++_FILE...; the tools are those first on PATH.
set -uo pipefail
cd "$(dirname "$0")/.."
failed=()

run() {
    local name=$1
    shift
    printf '%-20s' "$name"
    local output
    if output=$("$@" 2>&1); then
        echo "ok"
    else
        echo "FAILED"
        sed 's/^/    /' <<<"$output"
        failed+=("$name")
    fi
}

type_check() {
    mkdir -p build/typing/serverless_triton
    for folder in backend cli loader scheduler; do
        ln -sfn "../../../$folder" "build/typing/serverless_triton/$folder"
    done
    ln -sfn ../../perf build/typing/perf
    mypy && mypy -p perf
}

generated_files_are_current() {
    local fresh
    fresh=$(mktemp -d)
    trap 'rm -rf "$fresh"' RETURN
    scripts/generate_proto.sh python "$fresh"
    (cd "$fresh" && find . -type f) | while read -r file; do
        diff -q "$fresh/$file" "$file" >/dev/null || { echo "$file is stale: make proto"; return 1; }
    done
}

run "ruff" ruff check .
run "ruff format" ruff format --check .
run "mypy --strict" type_check
[[ $# == 0 ]] || run "clang-format" clang-format --dry-run --Werror "$@"
run "import directions" python -m pytest -q -p no:cacheprovider tests/unit/test_import_directions.py
run "generated files" generated_files_are_current

[[ ${#failed[@]} == 0 ]] || { echo "failed: ${failed[*]}" >&2; exit 1; }
