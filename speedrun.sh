#!/usr/bin/env bash
# From raw text to a model that you can chat with, in one command:
#
#   bash speedrun.sh
#
# Sets up .venv, detects the hardware and selects a tier:
#
#   cpu      no GPU: a small model of the built-in primer world, about ten minutes on two cores
#   gpu      one GPU: depth 12 on fineweb-edu, an evening on a good card
#   node     several GPUs: the reference run, depth 20 on fineweb-edu, about four hours on 8 x H100
#   smoke    one minute: checks that every stage runs; the model is useless
#
#   NANOCHAT_TIER=cpu bash speedrun.sh         select the tier
#   DEPTH=26 NUM_SHARDS=450 bash speedrun.sh   another depth or amount of text, on GPUs
#   WANDB_RUN=name bash speedrun.sh            log to the tracker, too (uv sync --extra tracker)
#
# Every stage is idempotent: after a crash, run the same command again to resume.
if [ -z "${BASH_VERSION:-}" ]; then exec bash "$0" "$@"; fi # as when it is run by sh
set -euo pipefail
unset CDPATH # which would lead `cd` elsewhere
case "${1:-}" in
    "") ;;
    -h | --help)
        sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
        exit 0
        ;;
    *)
        echo "error: $1: speedrun.sh takes no arguments, only environment variables; see --help" >&2
        exit 2
        ;;
esac
cd "$(dirname "${BASH_SOURCE[0]}")"
if [ -z "${NANOCHAT_BASE_DIR:-}${HOME:-}" ]; then
    echo "error: HOME is not set; set NANOCHAT_BASE_DIR to a folder for the outputs" >&2
    exit 2
fi

bash dev/setup.sh
unset MPLBACKEND # of a notebook; the figures of the report need none
PYTHON=.venv/bin/python
BASE="${NANOCHAT_BASE_DIR:-${HOME:-}/.cache/nanochat}"
if ! mkdir -p "$BASE" || [ ! -w "$BASE" ]; then
    echo "error: $BASE is not writable; set NANOCHAT_BASE_DIR to a writable folder" >&2
    exit 2
fi

NUM_GPUS=$("$PYTHON" -c 'import torch; print(torch.cuda.device_count())')
if [ -z "${NANOCHAT_TIER:-}" ]; then
    case "$NUM_GPUS" in
        0) NANOCHAT_TIER=cpu ;;
        1) NANOCHAT_TIER=gpu ;;
        *) NANOCHAT_TIER=node ;;
    esac
fi

# ---- tiers: text, model, length of training
SAMPLE_QUESTION="Why is the sky blue?"
case "$NANOCHAT_TIER" in
    cpu)
        SAMPLE_QUESTION="What is 347 + 588?"
        # The result depends on the number of tokens seen, so the model is the smallest that works.
        # Finetuning gets most of the time: with one conversation per row, copying from the context
        # is learned there.
        if grep -qsE "avx512_bf16|amx_bf16" /proc/cpuinfo; then export NANOCHAT_DTYPE="${NANOCHAT_DTYPE:-bfloat16}"; fi
        DATA_OPTIONS=(--source=primer -n 4)
        TOKENIZER_OPTIONS=(--max_chars=20000000 --vocab_size=2048)
        RATES=(--matrix_lr=0.012 --embedding_lr=0.15 --unembedding_lr=0.008)
        BASE_OPTIONS=(--depth="${DEPTH:-3}" --head_dim=64 --max_seq_len=256 --rope_base=100
            --total_batch_size=4096 --num_iterations=250 --warmdown_share=0.3 --final_lr=0.3 --grad_clip=0
            "${RATES[@]}" --eval_every=125 --save_every=50)
        LOSS_OPTIONS=(--eval_tokens=65536)
        CORE_OPTIONS=()
        MID_OPTIONS=(--total_batch_size=4096 --num_conversations=18000 --warmdown_share=0.3
            "${RATES[@]}" --eval_every=100 --save_every=75)
        SFT_OPTIONS=(--rows_per_step=64 --device_batch_size=16 --num_conversations=54000 --init_lr=1.0
            "${RATES[@]}" --eval_every=250 --save_every=100)
        RL_OPTIONS=(--num_iterations=16 --prompts_per_step=16 --num_samples=8 --max_new_tokens=64
            --device_batch_size=32 "${RATES[@]}" --eval_every=8 --save_every=8)
        CHAT_EVAL_OPTIONS=(--primer_problems=50 --max_new_tokens=64)
        ;;
    smoke)
        SAMPLE_QUESTION="What is 347 + 588?"
        DATA_OPTIONS=(--source=primer -n 1)
        TOKENIZER_OPTIONS=(--max_chars=500000 --vocab_size=1024)
        BASE_OPTIONS=(--depth="${DEPTH:-1}" --head_dim=32 --max_seq_len=256 --total_batch_size=1024
            --num_iterations=6 --eval_every=3 --save_every=2 --eval_tokens=2048)
        LOSS_OPTIONS=(--eval_tokens=2048)
        CORE_OPTIONS=()
        MID_OPTIONS=(--total_batch_size=1024 --num_conversations=64 --num_iterations=6 --save_every=2
            --eval_tokens=2048 --eval_conversations=16)
        SFT_OPTIONS=(--rows_per_step=8 --num_conversations=48 --save_every=2 --eval_tokens=2048
            --eval_conversations=16)
        RL_OPTIONS=(--num_iterations=3 --prompts_per_step=4 --num_samples=4 --max_new_tokens=16
            --num_prompts=64 --save_every=1 --eval_tokens=2048 --eval_conversations=16)
        CHAT_EVAL_OPTIONS=(--primer_problems=2 --max_new_tokens=16)
        ;;
    gpu | node)
        if [ "$NANOCHAT_TIER" = gpu ]; then default_depth=12 default_shards=64; else default_depth=20 default_shards=240; fi
        DATA_OPTIONS=(--source=fineweb-edu -n "${NUM_SHARDS:-$default_shards}" --prefetch=mid,sft,rl,eval)
        TOKENIZER_OPTIONS=(--max_chars=2000000000 --vocab_size=65536)
        BASE_OPTIONS=(--depth="${DEPTH:-$default_depth}")
        LOSS_OPTIONS=(--eval_tokens=10485760)
        CORE_OPTIONS=()
        # As many validation tokens as pretraining has, so that the columns of the report compare.
        MID_OPTIONS=(--weight_decay=0.0 --eval_tokens=10485760)
        SFT_OPTIONS=(--num_epochs=1 --eval_tokens=10485760)
        RL_OPTIONS=(--num_epochs=1 --eval_tokens=10485760)
        CHAT_EVAL_OPTIONS=(--batch_size=64)
        ;;
    *)
        echo "error: NANOCHAT_TIER=$NANOCHAT_TIER is not known; use cpu, gpu, node or smoke" >&2
        exit 2
        ;;
esac
if [ -n "${DEVICE_BATCH_SIZE:-}" ]; then
    BASE_OPTIONS+=(--device_batch_size="$DEVICE_BATCH_SIZE")
    MID_OPTIONS+=(--device_batch_size="$DEVICE_BATCH_SIZE")
    SFT_OPTIONS+=(--device_batch_size="$DEVICE_BATCH_SIZE")
    RL_OPTIONS+=(--device_batch_size="$DEVICE_BATCH_SIZE")
fi

# ---- launching commands
if [ "$NANOCHAT_TIER" = node ] && [ "$NUM_GPUS" -gt 1 ]; then
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # ranks share the cores
    on_all_devices() {
        local module=$1
        shift
        .venv/bin/torchrun --standalone --nproc_per_node="$NUM_GPUS" -m "$module" -- "$@"
    }
else
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)}"
    on_all_devices() {
        local module=$1
        shift
        "$PYTHON" -m "$module" "$@"
    }
fi
alone() {
    local module=$1
    shift
    "$PYTHON" -m "$module" "$@"
}

SUMMARY=""
stage() { # stage TITLE COMMAND...: run the command and record its time
    local title=$1 began=$SECONDS line
    shift
    printf '\n== %s\n' "$title"
    local code=0
    "$@" || code=$?
    if [ "$code" -ne 0 ]; then
        printf '\n%s failed. Fix the error above, then run the same command again to resume.\n' "$title" >&2
        exit "$code"
    fi
    line=$(awk -v t="$title" -v s=$((SECONDS - began)) 'BEGIN { printf "  %-40s %6.1f min", t, s / 60 }')
    printf '%s\n' "$line"
    SUMMARY+="$line"$'\n'
}

echo "nanochat: tier $NANOCHAT_TIER, $NUM_GPUS GPU(s), $OMP_NUM_THREADS thread(s) per process, base directory $BASE"

# Another tier, depth or amount of text starts an empty report; resuming keeps finished sections.
run_name="$NANOCHAT_TIER ${DEPTH:-} ${NUM_SHARDS:-}"
if [ "$(cat "$BASE/report/run.txt" 2>/dev/null || true)" != "$run_name" ]; then
    alone nanochat.report reset
    mkdir -p "$BASE/report"
    echo "$run_name" >"$BASE/report/run.txt"
fi

stage "Text" alone nanochat.dataset "${DATA_OPTIONS[@]}"
stage "Tokenizer" alone scripts.tok_train "${TOKENIZER_OPTIONS[@]}"
stage "Tokenizer, evaluation" alone scripts.tok_eval
stage "Pretraining" on_all_devices scripts.base_train "${BASE_OPTIONS[@]}"
stage "Pretraining, bits per byte" on_all_devices scripts.base_loss "${LOSS_OPTIONS[@]}"
stage "Pretraining, evaluation" on_all_devices scripts.base_eval ${CORE_OPTIONS[@]+"${CORE_OPTIONS[@]}"}
stage "Pretraining, questions" on_all_devices scripts.chat_eval -i base "${CHAT_EVAL_OPTIONS[@]}"
stage "Midtraining" on_all_devices scripts.mid_train "${MID_OPTIONS[@]}"
stage "Midtraining, questions" on_all_devices scripts.chat_eval -i mid "${CHAT_EVAL_OPTIONS[@]}"
stage "Supervised finetuning" on_all_devices scripts.chat_sft "${SFT_OPTIONS[@]}"
stage "Supervised finetuning, questions" on_all_devices scripts.chat_eval -i sft "${CHAT_EVAL_OPTIONS[@]}"
stage "Reinforcement learning" on_all_devices scripts.chat_rl "${RL_OPTIONS[@]}"
stage "Reinforcement learning, questions" on_all_devices scripts.chat_eval -i rl "${CHAT_EVAL_OPTIONS[@]}"
stage "Report" alone nanochat.report generate

printf '\nDone in %d min %02d s:\n\n%s\n' $((SECONDS / 60)) $((SECONDS % 60)) "$SUMMARY"
cat <<END
The report:            $BASE/report/report.html (and report.md)
Chat in the terminal:  .venv/bin/python -m scripts.chat_cli
Ask one question:      .venv/bin/python -m scripts.chat_cli -p "$SAMPLE_QUESTION"
Chat in the browser:   .venv/bin/python -m scripts.chat_web
END
