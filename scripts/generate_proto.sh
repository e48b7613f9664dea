#!/usr/bin/env bash
# Generates gRPC code from every .proto of ours, beside it or under another root: generate_proto.sh PYTHON [ROOT]
set -euo pipefail
python=$1
cd "$(dirname "$0")/.."
root=${2:-.}

# protoc derives the imports in its output from the folder that it finds the file in: the import name, not the folder's.
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
while read -r file; do
    folder=serverless_triton/$(dirname "$file")
    mkdir -p "$tree/in/$folder" "$tree/out" "$root/$(dirname "$file")"
    cp "$file" "$tree/in/$folder/"
    "$python" -m grpc_tools.protoc -I "$tree/in" --python_out="$tree/out" --pyi_out="$tree/out" \
        --grpc_python_out="$tree/out" "$tree/in/serverless_triton/$file"
    name=$(basename "$file" .proto)
    cp "$tree/out/$folder/${name}_pb2"* "$root/$(dirname "$file")/"
done < <(git ls-files --cached --others --exclude-standard '*.proto' | grep -E '^(backend|scheduler)/')
