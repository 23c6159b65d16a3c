#!/usr/bin/env bash
# The CPU tier on any machine, with or without a GPU, in a separate base directory.
#
#   bash dev/runcpu.sh                          like speedrun.sh without a GPU
#   NANOCHAT_TIER=smoke bash dev/runcpu.sh      one minute: checks that every stage runs
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export CUDA_VISIBLE_DEVICES=""
export NANOCHAT_TIER="${NANOCHAT_TIER:-cpu}"
export NANOCHAT_BASE_DIR="${NANOCHAT_BASE_DIR:-$HOME/.cache/nanochat-$NANOCHAT_TIER}"
exec bash speedrun.sh
