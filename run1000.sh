#!/usr/bin/env bash
# The d32 run: 1.9 billion parameters, about 40 hours on one node of 8 x H100. It is speedrun.sh with
# another depth, more text and smaller micro-batches. Run it again to resume.
#
#   bash run1000.sh
if [ -z "${BASH_VERSION:-}" ]; then exec bash "$0" "$@"; fi
set -euo pipefail
unset CDPATH
cd "$(dirname "${BASH_SOURCE[0]}")"
case "${1:-}" in -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' run1000.sh && echo ;; esac

export NANOCHAT_TIER="${NANOCHAT_TIER:-node}"
export DEPTH="${DEPTH:-32}"
export DEVICE_BATCH_SIZE="${DEVICE_BATCH_SIZE:-8}"
exec bash speedrun.sh "$@"
