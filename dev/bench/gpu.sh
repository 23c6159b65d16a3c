#!/bin/bash
# What a GPU shows in five minutes: ceilings, GPU tests, training, finetuning, the engine, the pipeline.
#
#     bash dev/bench/gpu.sh                   results in dev/bench/results/gpu-DATE.json
#     bash dev/bench/gpu.sh --wheels FOLDER   on a machine without a network: packages from there
#     bash dev/bench/gpu.sh --tiny            the same on a CPU, at sizes that prove nothing
#
# Needs Python with torch; NANOCHAT_BASE_DIR is a new folder that is removed at the end.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
if [ "${1:-}" = --wheels ]; then
    "$python" -m pip install -q --no-index --no-deps --target "$scratch/site" "$2"/*.whl
    export PYTHONPATH="$scratch/site:${PYTHONPATH:-}"
    shift 2
fi
NANOCHAT_BASE_DIR="$scratch/base" "$python" -m dev.bench.gpu "$@"
