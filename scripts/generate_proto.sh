#!/usr/bin/env bash
# Generates the agent's gRPC code from backend/agent.proto: generate_proto.sh PYTHON OUTPUT_FOLDER
set -euo pipefail
python=$1
output=$2
cd "$(dirname "$0")/.."

# protoc derives the imports in its output from the folder that it finds the file in: the import name, not the folder's.
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
mkdir -p "$tree/in/serverless_triton/backend" "$tree/out"
cp backend/agent.proto "$tree/in/serverless_triton/backend/"
"$python" -m grpc_tools.protoc -I "$tree/in" --python_out="$tree/out" --pyi_out="$tree/out" --grpc_python_out="$tree/out" \
    "$tree/in/serverless_triton/backend/agent.proto"
cp "$tree"/out/serverless_triton/backend/agent_pb2* "$output/"
