#!/usr/bin/env bash
# From raw text to a model that you can chat with, in one command:
#
#   bash speedrun.sh
#
# Sets up .venv, detects the hardware and selects a tier:
#
#   cpu      no GPU: a small model of the built-in primer world, 11 to 12 minutes on two cores
#   gpu      one GPU of 8 GB or more: fineweb-edu, the depth that is pretrained in HOURS (8) on it
#   node     several GPUs: the reference run, depth 20 on fineweb-edu, about four hours on 8 x H100
#   smoke    one minute: checks that every stage runs; the model is useless
#
#   NANOCHAT_TIER=cpu bash speedrun.sh         select the tier
#   DEPTH=26 bash speedrun.sh                  another depth, on GPUs; the text follows from it
#   WANDB_RUN=name bash speedrun.sh            log to the tracker, too (uv sync --extra tracker)
#
# More variables, for tiers of GPUs unless noted:
#
#   HORIZON            tokens of pretraining per parameter, 20
#   HOURS              of pretraining at most, to select the depth for one GPU
#   TOTAL_BATCH_SIZE   tokens of a step of pretraining
#   DEVICE_BATCH_SIZE  rows per forward pass on a device
#   NUM_SHARDS         of text, 100 MB each; by default one epoch
#   TOKENIZER_SHARDS   after which the tokenizer is trained, while the others arrive, 10
#   TAG                name of the run, d$DEPTH; its checkpoints and its report are kept (all tiers)
#   IDENTITY_FILE      conversations about the model itself, a JSON file (all tiers)
#   SKIP_RL=1          no reinforcement learning (all tiers)
#   FRESH=1            move what a run of this name has made to replaced/ (all tiers)
#   NUM_RANKS, DEVICE_TYPE=cpu                try a tier of GPUs on a CPU, as dev/rehearse.sh does
#   TOKENIZER_ARGS, BASE_ARGS, LOSS_ARGS, CORE_ARGS, MID_ARGS, SFT_ARGS, RL_ARGS, QUESTIONS_ARGS
#                      more options of the commands, as in BASE_ARGS="--save_every=50" (all tiers)
#
# Every stage is idempotent: after a crash, run the same command again (without FRESH) to resume. Over
# ssh start it within tmux or screen, so that it outlives the connection.
if [ -z "${BASH_VERSION:-}" ]; then exec bash "$0" "$@"; fi # as when it is run by sh
{ # bash reads all of it before it begins, so that the file may be edited while it runs for hours
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
started_in=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")"
if [ -z "${NANOCHAT_BASE_DIR:-}${HOME:-}" ]; then
    echo "error: HOME is not set; set NANOCHAT_BASE_DIR to a folder for the outputs" >&2
    exit 2
fi

bash dev/setup.sh
unset MPLBACKEND # of a notebook; the figures of the report need none
PYTHON=.venv/bin/python
from_start() { # PATH as it is meant in the folder in which speedrun.sh was started
    case "$1" in
        /* | none) printf '%s\n' "$1" ;;
        "~/"*) printf '%s\n' "${HOME:-}${1#"~"}" ;; # in quotes
        *) printf '%s\n' "$started_in/$1" ;;
    esac
}
BASE=$(from_start "${NANOCHAT_BASE_DIR:-${HOME:-}/.cache/nanochat}")
export NANOCHAT_BASE_DIR="$BASE"
if ! mkdir -p "$BASE" || [ ! -w "$BASE" ]; then
    echo "error: $BASE is not writable; set NANOCHAT_BASE_DIR to a writable folder" >&2
    exit 2
fi

exec 9>"$BASE/.speedrun.lock" # locked until this shell and the commands that it starts have ended
locked=0
if command -v flock >/dev/null; then flock -n 9 || locked=$?; fi
if [ "$locked" = 1 ]; then # other numbers: this file system has no locks
    echo "error: another speedrun.sh is running in $BASE; wait for its end, or set NANOCHAT_BASE_DIR to another folder" >&2
    exit 2
fi

if [ "${WANDB_RUN:-dummy}" != dummy ]; then # find out now what would stop the first training stage
    "$PYTHON" -c 'from nanochat import configurator, metrics; configurator.run(metrics.check_tracker)'
fi

selected=$("$PYTHON" -m scripts.select_tier --tier="${NANOCHAT_TIER:-}" --depth="${DEPTH:-0}" \
    --tokens_per_parameter="${HORIZON:-20}" --hours="${HOURS:-8}" --num_shards="${NUM_SHARDS:-0}" \
    --num_ranks="${NUM_RANKS:-0}" --device_type="${DEVICE_TYPE:-}") || exit $?
eval "$selected" # NANOCHAT_TIER, NUM_GPUS, NUM_RANKS, MINUTES_*; for GPUs DEPTH, NUM_SHARDS, DISK_GB

# ---- tiers: text, model, length of training
FIRST_SHARDS=0
SAMPLE_QUESTION="Why is the sky blue?"
case "$NANOCHAT_TIER" in
    cpu)
        SAMPLE_QUESTION="What is 347 + 588?"
        # The result depends on the number of tokens seen, so the model is the smallest that works.
        # Finetuning gets most of the time: with one conversation per row, copying from the context
        # is learned there.
        if grep -qsE "avx512_bf16|amx_bf16" /proc/cpuinfo; then export NANOCHAT_DTYPE="${NANOCHAT_DTYPE:-bfloat16}"; fi
        DATA_OPTIONS=(--source=primer -n 4)
        # Names of the world are tokens; of words that are copied or spelled, the parts are.
        TOKENIZER_OPTIONS=(--max_chars=20000000 --vocab_size=2048 --fold_all_caps --add_prefix_space)
        RATES=(--matrix_lr=0.010 --embedding_lr=0.12 --unembedding_lr=0.006)
        BASE_OPTIONS=(--depth="${DEPTH:-3}" --head_dim=64 --max_seq_len=256 --rope_base=100
            --value_embeddings=1 --key_offset_heads=1 --rotary_share=0.5 --total_batch_size=2048
            --num_iterations=1000 --warmdown_share=0.3 --final_lr=0.3 --grad_clip=0 "${RATES[@]}"
            --eval_every=0 --save_every=100)
        LOSS_OPTIONS=(--eval_tokens=65536)
        CORE_OPTIONS=()
        MID_OPTIONS=(--total_batch_size=2048 --num_conversations=10000 --warmdown_share=0.3
            "${RATES[@]}" --eval_every=0 --save_every=100)
        SFT_OPTIONS=(--rows_per_step=64 --device_batch_size=16 --num_conversations=72000 --init_lr=1.0
            "${RATES[@]}" --eval_every=0 --save_every=100)
        RL_OPTIONS=(--family=long_problems --num_iterations=60 --prompts_per_step=16 --num_samples=8
            --max_new_tokens=64 --device_batch_size=64 --init_lr=0.1 "${RATES[@]}" --eval_every=30
            --save_every=20)
        CHAT_EVAL_OPTIONS=(--primer_problems=50 --max_new_tokens=64)
        ;;
    smoke)
        SAMPLE_QUESTION="What is 347 + 588?"
        DATA_OPTIONS=(--source=primer -n 1)
        TOKENIZER_OPTIONS=(--max_chars=500000 --vocab_size=1024 --fold_all_caps --add_prefix_space)
        BASE_OPTIONS=(--depth="${DEPTH:-1}" --head_dim=32 --max_seq_len=256 --key_offset_heads=1
            --rotary_share=0.5 --total_batch_size=1024 --num_iterations=6 --eval_every=3
            --save_every=2 --eval_tokens=2048)
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
        DATA_OPTIONS=(--source=fineweb-edu -n "$NUM_SHARDS" --prefetch=all)
        FIRST_SHARDS="${TOKENIZER_SHARDS:-10}"
        MINUTES_TOKENIZER_TEXT=$(awk "BEGIN { print $MINUTES_TEXT * $FIRST_SHARDS / $NUM_SHARDS }")
        TOKENIZER_OPTIONS=(--max_chars=2000000000 --vocab_size=65536)
        BASE_OPTIONS=(--depth="$DEPTH" --tokens_per_parameter="${HORIZON:-20}")
        if [ -n "${TOTAL_BATCH_SIZE:-}" ]; then BASE_OPTIONS+=(--total_batch_size="$TOTAL_BATCH_SIZE"); fi
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
if [ -n "${IDENTITY_FILE:-}" ]; then
    MID_OPTIONS+=(--identity_file="$(from_start "$IDENTITY_FILE")")
    SFT_OPTIONS+=(--identity_file="$(from_start "$IDENTITY_FILE")")
fi

# Every command is told the run, so that another run in this base directory does not get in the way.
case "$NANOCHAT_TIER" in
    cpu) TAG="${TAG:-d${DEPTH:-3}}" ;;
    smoke) TAG="${TAG:-d${DEPTH:-1}}" ;;
    *) TAG="${TAG:-d$DEPTH}" ;;
esac
RUN_OPTIONS=(--model_tag="$TAG")
if [ -n "${DEVICE_TYPE:-}" ]; then RUN_OPTIONS+=(--device_type="$DEVICE_TYPE"); fi
FRESH_OPTIONS=()
if [ "${FRESH:-0}" != 0 ]; then FRESH_OPTIONS=(--fresh); fi
# Without quotes: split into words. ${name[@]+...}: older versions of bash refuse empty arrays.
TOKENIZER_OPTIONS+=(${FRESH_OPTIONS[@]+"${FRESH_OPTIONS[@]}"} ${TOKENIZER_ARGS:-})
TRAIN_OPTIONS=("${RUN_OPTIONS[@]}" ${FRESH_OPTIONS[@]+"${FRESH_OPTIONS[@]}"})
BASE_OPTIONS+=("${TRAIN_OPTIONS[@]}" ${BASE_ARGS:-})
MID_OPTIONS+=("${TRAIN_OPTIONS[@]}" ${MID_ARGS:-})
SFT_OPTIONS+=("${TRAIN_OPTIONS[@]}" ${SFT_ARGS:-})
RL_OPTIONS+=("${TRAIN_OPTIONS[@]}" ${RL_ARGS:-})
LOSS_OPTIONS+=("${RUN_OPTIONS[@]}" ${LOSS_ARGS:-})
CORE_OPTIONS+=("${RUN_OPTIONS[@]}" ${CORE_ARGS:-})
CHAT_EVAL_OPTIONS+=("${RUN_OPTIONS[@]}" ${QUESTIONS_ARGS:-})

# A wrong option, or conversations that cannot be read, would else stop the run after hours.
"$PYTHON" - tok_train "${TOKENIZER_OPTIONS[@]}" , base_train "${BASE_OPTIONS[@]}" \
    , base_loss "${LOSS_OPTIONS[@]}" , base_eval "${CORE_OPTIONS[@]}" , mid_train "${MID_OPTIONS[@]}" \
    , chat_sft "${SFT_OPTIONS[@]}" , chat_rl "${RL_OPTIONS[@]}" \
    , chat_eval "${CHAT_EVAL_OPTIONS[@]}" <<'END' || exit $?
import importlib, itertools, sys

from nanochat.configurator import parse, run
from scripts.training import own_conversations


def check():
    for is_comma, words in itertools.groupby(sys.argv[1:], ",".__eq__):
        if not is_comma:
            name, *argv = words
            options = parse(importlib.import_module(f"scripts.{name}").Options, argv)
            if name in ("mid_train", "chat_sft"):
                own_conversations(options, "none")


run(check)
END

# ---- launching commands
if [ "$NUM_RANKS" -gt 1 ]; then
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # ranks share the cores
    on_all_devices() {
        local module=$1
        shift
        .venv/bin/torchrun --standalone --nproc_per_node="$NUM_RANKS" -m "$module" -- "$@"
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

duration() { # duration MINUTES
    awk -v m="$1" 'BEGIN { if (m >= 90) printf "%.1f hours", m / 60; else printf "%.1f minutes", m }'
}
SUMMARY=""
stage() { # stage NAME TITLE COMMAND...: print the estimated time, run the command, record its time
    local title=$2 began=$SECONDS line minutes
    eval "minutes=\${MINUTES_$1:-}"
    shift 2
    printf '\n== %s%s\n' "$title" "${minutes:+ (estimated: $(duration "$minutes"))}"
    local code=0
    "$@" || code=$?
    if [ "$code" -ne 0 ]; then
        printf '\n%s failed. Fix the error above, then run the same command again%s to resume.\n' "$title" \
            "${FRESH_OPTIONS[0]:+, without FRESH,}" >&2
        printf 'TAG=NAME bash speedrun.sh makes a second run beside this one; FRESH=1 replaces it.\n' >&2
        exit "$code"
    fi
    line=$(awk -v t="$title" -v s=$((SECONDS - began)) 'BEGIN { printf "  %-40s %6.1f min", t, s / 60 }')
    printf '%s\n' "$line"
    SUMMARY+="$line"$'\n'
}

echo "nanochat: tier $NANOCHAT_TIER, $NUM_GPUS GPU(s), run $TAG, $NUM_RANKS process(es) of $OMP_NUM_THREADS thread(s), base directory $BASE"
if [ -n "${MINUTES_BASE:-}" ]; then
    minutes=$(awk -F= -v skip="${SKIP_RL:-0}" '/^MINUTES_/ && !(skip && /_RL/) { m += $2 } END { print m }' <<<"$selected")
    echo "estimated: $(duration "$minutes") in all"
fi
if [ -n "${DISK_GB:-}" ]; then
    echo "depth $DEPTH, ${HORIZON:-20} tokens per parameter, $NUM_SHARDS shards of text"
    echo "disk: about $DISK_GB GB in all, $(df -Pk "$BASE" | awk 'NR == 2 { printf "%d", $4 / 976562.5 }') GB are free"
fi

# The report of this run is in report/; those of other runs are kept in reports/.
run_name="$NANOCHAT_TIER-$TAG"
reported=$(cat "$BASE/report/run.txt" 2>/dev/null || true)
if [ -e "$BASE/report" ] && { [ "$reported" != "$run_name" ] || [ "${FRESH:-0}" != 0 ]; }; then
    kept="$BASE/reports/${reported:-without a name}"
    if [ -e "$kept" ] || [ "$reported" = "$run_name" ]; then kept="$kept $(date +%Y-%m-%d-%H%M%S)"; fi
    mkdir -p "$BASE/reports"
    mv "$BASE/report" "$kept"
fi
if [ ! -e "$BASE/report" ] && [ -e "$BASE/reports/$run_name" ]; then mv "$BASE/reports/$run_name" "$BASE/report"; fi
mkdir -p "$BASE/report"
echo "$run_name" >"$BASE/report/run.txt"

# The first time, the tokenizer is trained as soon as its text is here, while the rest arrives.
download=""
finish_download() {
    if [ -n "$download" ]; then
        if ! wait "$download"; then
            tail -n 5 "$BASE/download.log" >&2
            return 1
        fi
        tail -n 1 "$BASE/download.log"
        download=""
    fi
}
if [ "$FIRST_SHARDS" -gt 0 ] && [ "$NUM_SHARDS" -gt "$FIRST_SHARDS" ] && [ ! -f "$BASE/data/fineweb-edu/manifest.json" ]; then
    stage TOKENIZER_TEXT "Text of the tokenizer" alone nanochat.dataset --source=fineweb-edu -n "$FIRST_SHARDS"
    alone nanochat.dataset "${DATA_OPTIONS[@]}" >"$BASE/download.log" 2>&1 &
    download=$!
    trap 'if [ -n "$download" ]; then kill "$download" 2>/dev/null || true; fi' EXIT
else
    stage TEXT "Text" alone nanochat.dataset "${DATA_OPTIONS[@]}"
fi
stage TOKENIZER "Tokenizer" alone scripts.tok_train "${TOKENIZER_OPTIONS[@]}"
stage TOKENIZER_EVALUATION "Tokenizer, evaluation" alone scripts.tok_eval
if [ -n "$download" ]; then stage TEXT "Text, the rest of it (progress: $BASE/download.log)" finish_download; fi
stage BASE "Pretraining" on_all_devices scripts.base_train "${BASE_OPTIONS[@]}"
stage LOSS "Pretraining, bits per byte" on_all_devices scripts.base_loss "${LOSS_OPTIONS[@]}"
stage CORE "Pretraining, evaluation" on_all_devices scripts.base_eval "${CORE_OPTIONS[@]}"
stage BASE_QUESTIONS "Pretraining, questions" on_all_devices scripts.chat_eval -i base "${CHAT_EVAL_OPTIONS[@]}"
stage MID "Midtraining" on_all_devices scripts.mid_train "${MID_OPTIONS[@]}"
stage MID_QUESTIONS "Midtraining, questions" on_all_devices scripts.chat_eval -i mid "${CHAT_EVAL_OPTIONS[@]}"
stage SFT "Supervised finetuning" on_all_devices scripts.chat_sft "${SFT_OPTIONS[@]}"
stage SFT_QUESTIONS "Supervised finetuning, questions" on_all_devices scripts.chat_eval -i sft "${CHAT_EVAL_OPTIONS[@]}"
if [ "${SKIP_RL:-0}" = 0 ]; then
    stage RL "Reinforcement learning" on_all_devices scripts.chat_rl "${RL_OPTIONS[@]}"
    stage RL_QUESTIONS "Reinforcement learning, questions" on_all_devices scripts.chat_eval -i rl "${CHAT_EVAL_OPTIONS[@]}"
fi
stage REPORT "Report" alone nanochat.report generate
cp "$BASE/report/report.md" "$started_in/report.md" 2>/dev/null || echo "notice: $started_in is not writable, so report.md is not copied there"

printf '\nDone in %d min %02d s:\n\n%s\n' $((SECONDS / 60)) $((SECONDS % 60)) "$SUMMARY"
cat <<END
The report:            $BASE/report/report.html, and report.md here
Chat in the terminal:  .venv/bin/python -m scripts.chat_cli
Ask one question:      .venv/bin/python -m scripts.chat_cli -p "$SAMPLE_QUESTION"
Chat in the browser:   .venv/bin/python -m scripts.chat_web
END
exit 0
}
