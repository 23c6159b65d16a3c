#!/usr/bin/env bash
# The CPU tier on any machine, with or without a GPU, in a separate base directory.
#
#   bash dev/runcpu.sh                          like speedrun.sh without a GPU
#   NANOCHAT_TIER=smoke bash dev/runcpu.sh      one minute: checks that every stage runs
if [ -z "${BASH_VERSION:-}" ]; then exec bash "$0" "$@"; fi
set -euo pipefail
unset CDPATH
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export CUDA_VISIBLE_DEVICES=""
export NANOCHAT_TIER="${NANOCHAT_TIER:-cpu}"
export NANOCHAT_BASE_DIR="${NANOCHAT_BASE_DIR:-${HOME:?is not set, set NANOCHAT_BASE_DIR}/.cache/nanochat-$NANOCHAT_TIER}"
exec bash speedrun.sh "$@"
