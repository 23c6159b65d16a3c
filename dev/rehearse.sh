#!/usr/bin/env bash
# Rehearse speedrun.sh (or run1000.sh) without a GPU and without the network: the tier of eight GPUs,
# on two CPU processes, with a small model and few steps, from a hub on loopback (tests/hub.py) with
# the real data of ../shared/data. Every stage and every evaluation of the real run is executed. Then
# once more with the hub stopped and HF_HUB_OFFLINE=1: all that is read must have been downloaded.
#
#   bash dev/rehearse.sh                       about 11 minutes on two cores
#   SMALL=1 bash dev/rehearse.sh               a few minutes: fewer steps and problems
#   SCRIPT=run1000.sh bash dev/rehearse.sh     the same of run1000.sh
#
# What it makes is in REHEARSAL_DIR, an empty folder; by default in a temporary one that is removed at
# the end. It only sets variables that speedrun.sh has; the scores mean nothing, and CORE is marked as
# partial.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ $# -gt 0 ]; then # it takes variables only
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' dev/rehearse.sh
    exit 0
fi
PYTHON=.venv/bin/python
script="${SCRIPT:-speedrun.sh}"
if [ ! -d ../shared/data/corpus ]; then
    echo "error: ../shared/data is missing, the data that the hub serves (tests/shared_data.py)" >&2
    exit 2
fi
folder="${REHEARSAL_DIR:-$(mktemp -d)}"
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
if [ -n "$(ls -A "$folder")" ]; then
    echo "error: $folder is not empty; remove it, or set REHEARSAL_DIR to another folder" >&2
    exit 2
fi
port=$("$PYTHON" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$PYTHON" -m tests.hub --port="$port" >"$folder/hub.log" 2>&1 &
hub=$!
clean_up() {
    kill "$hub" 2>/dev/null || true
    if [ -z "${REHEARSAL_DIR:-}" ]; then rm -rf "$folder"; fi
}
trap clean_up EXIT
for _ in $(seq 120); do
    if grep -q "files at" "$folder/hub.log"; then break; fi
    if ! kill -0 "$hub" 2>/dev/null; then cat "$folder/hub.log" >&2; exit 1; fi
    sleep 0.5
done

export NO_PROXY=127.0.0.1 no_proxy=127.0.0.1 # the hub is here
export NANOCHAT_BASE_DIR="$folder/base" NANOCHAT_TIER=node NUM_RANKS=2 DEVICE_TYPE=cpu
export HF_ENDPOINT="http://127.0.0.1:$port" NANOCHAT_MIRROR="http://127.0.0.1:$port"
export DEPTH="${DEPTH:-2}" NUM_SHARDS="${NUM_SHARDS:-2}" TOKENIZER_SHARDS=1 DEVICE_BATCH_SIZE=4 CUDA_VISIBLE_DEVICES=""
if [ "${SMALL:-0}" = 0 ]; then steps=20 items=8 problems=16 tokens=24; else steps=4 items=2 problems=2 tokens=8; fi
few="--eval_tokens=4096"
few_answers="$few --eval_conversations=4"
export TOKENIZER_ARGS="--vocab_size=2048 --max_chars=2000000"
export BASE_ARGS="--max_seq_len=512 --total_batch_size=4096 --num_iterations=$steps $few"
export LOSS_ARGS="$few" CORE_ARGS="--max_per_task=$items"
export MID_ARGS="--total_batch_size=4096 --num_iterations=$steps $few_answers"
export SFT_ARGS="$few_answers --num_iterations=$steps"
export RL_ARGS="--num_iterations=2 --prompts_per_step=2 --num_samples=2 --max_new_tokens=$tokens $few_answers"
export QUESTIONS_ARGS="--max_problems=$problems --max_new_tokens=$tokens"

root=$PWD
cd "$folder" # where report.md is copied: one's own, in the repository, stays
bash "$root/$script" 2>&1 | tee first.log
for word in "not CORE" "ChatCORE"; do
    grep -q "$word" first.log || { echo "error: the first run does not print $word" >&2; exit 1; }
done

kill "$hub"
wait "$hub" 2>/dev/null || true
echo "== once more, with the hub stopped"
mv "$NANOCHAT_BASE_DIR" "$folder/first"
mkdir "$NANOCHAT_BASE_DIR"
for name in data task_data eval_bundle hub_revisions.json; do # what was downloaded, and nothing else
    mv "$folder/first/$name" "$NANOCHAT_BASE_DIR/"
done
HF_HUB_OFFLINE=1 bash "$root/$script" 2>&1 | tee offline.log

# Without a network the same weights come out, to the last bit.
"$root/$PYTHON" - "$folder/first" "$NANOCHAT_BASE_DIR" <<'END'
import sys
from pathlib import Path

import torch

first, second = map(Path, sys.argv[1:])
names = sorted(path.relative_to(first) for path in first.glob("*_checkpoints/*/model_*.pt"))
assert names, "there are no checkpoints"
for name in names:
    one, other = (torch.load(folder / name, weights_only=True) for folder in (first, second))
    assert one.keys() == other.keys(), f"{name}: other tensors"
    assert all(torch.equal(one[key], other[key]) for key in one), f"{name} differs"
print(f"the weights in {len(names)} files are equal")
END
