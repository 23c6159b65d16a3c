#!/bin/bash
# Trains depths at several horizons, fits curves to them (parameters, tokens, FLOPs against bits per
# byte), and chooses the tokens per parameter: table, JSON and plot. Run again, it resumes.
#
#     bash dev/miniseries.sh --recipe=modern                           on GPUs; options are base_train's
#     DEPTHS="1 2 3" FLOPS="3e12 9e12 3e13" bash dev/miniseries.sh --recipe=modern --head_dim=64 \
#         --max_seq_len=256 --total_batch_size=2048                    on a CPU
#
# NANOCHAT_BASE_DIR holds the text and the tokenizer (nanochat.dataset, scripts.tok_train). HORIZONS
# are tokens per parameter, all counted, as --tokens_per_parameter; FLOPS, in their place, what each
# depth spends, as --target_flops; RANKS is the number of GPUs.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
train=("$python" -m scripts.base_train)
if [ "${RANKS:-1}" -gt 1 ]; then
    train=("$python" -m torch.distributed.run --standalone --nproc_per_node="$RANKS" -m scripts.base_train --)
fi
settings=$(printf '%s ' "$@" | sha256sum | cut -c 1-6)  # other options make other runs
option=${FLOPS:+target_flops}
option=${option:-tokens_per_parameter}
tags=()
for depth in ${DEPTHS:-8 10 12 14 16}; do
    for horizon in ${FLOPS:-${HORIZONS:-5 10 20}}; do
        tag="miniseries-$settings-d$depth-$horizon"
        "${train[@]}" --depth="$depth" --"$option=$horizon" --model_tag="$tag" \
            --eval_every=0 --keep_checkpoints=1 "$@"
        tags+=("$tag")
    done
done
"$python" -m dev.bench.miniseries "${tags[@]}" --out "${OUT:-dev/bench/results/miniseries-$(date +%F).json}"
