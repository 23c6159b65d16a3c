#!/bin/bash
# Training on 1, 2, 4 and 8 GPUs, as many as there are: tok/s in dev/bench/results/scaling-N-*.json.
#
#     bash dev/bench/scaling.sh [--depths 12 20] [--transport bfloat16] [other options of dev.bench.train]
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
count=$("$python" -c 'import torch; print(torch.cuda.device_count())')
for ranks in 1 2 4 8; do
    if [ "$ranks" -gt "$count" ]; then
        echo "$count GPUs: $ranks are not measured"
        continue
    fi
    "$python" -m torch.distributed.run --standalone --nproc_per_node="$ranks" -m dev.bench.train --compile \
        --sequence_len 2048 --rows $((32 * ranks)) --device_batch_size 16 \
        --out "dev/bench/results/scaling-$ranks-$(date +%F).json" "$@"
done
