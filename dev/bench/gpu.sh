#!/bin/bash
# What a GPU shows in five minutes: ceilings, training, the engine, GPU tests, finetuning, the pipeline.
#
#     bash dev/bench/gpu.sh                   results in dev/bench/results/gpu-DATE.json
#     bash dev/bench/gpu.sh --wheels FOLDER   on a machine without a network: packages from there
#     bash dev/bench/gpu.sh --minutes 8       with more time; what does not fit is killed
#     bash dev/bench/gpu.sh --tiny            the same on a CPU, at sizes that prove nothing
#
# Needs Python with torch; NANOCHAT_BASE_DIR is a new folder that is removed at the end.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
if [ "${1:-}" = --wheels ]; then
    for wheel in "$2"/*.whl; do # not by pip, which an environment of uv does not have
        "$python" -m zipfile -e "$wheel" "$scratch/site"
    done
    export PYTHONPATH="$scratch/site:${PYTHONPATH:-}"
    shift 2
fi
# Compiled code of an earlier run would hide how long compiling takes.
export TORCHINDUCTOR_CACHE_DIR="$scratch/inductor" TRITON_CACHE_DIR="$scratch/triton"
NANOCHAT_BASE_DIR="$scratch/base" "$python" -m dev.bench.gpu "$@"
