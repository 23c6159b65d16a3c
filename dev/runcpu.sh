#!/usr/bin/env bash
# The CPU tier on any machine, also on one with a GPU, in a base directory of its own.
#
#   bash dev/runcpu.sh              as speedrun.sh without a GPU
#   NANOCHAT_TIER=smoke bash dev/runcpu.sh      a minute: does every stage run?
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export CUDA_VISIBLE_DEVICES=""
export NANOCHAT_TIER="${NANOCHAT_TIER:-cpu}"
export NANOCHAT_BASE_DIR="${NANOCHAT_BASE_DIR:-$HOME/.cache/nanochat-$NANOCHAT_TIER}"
exec bash speedrun.sh
