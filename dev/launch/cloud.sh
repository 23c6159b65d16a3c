#!/usr/bin/env bash
# Runs speedrun.sh on a rented machine that ssh reaches, and brings the report back.
#
#   bash dev/launch/cloud.sh user@host                 starts it, or looks in on it, or fetches
#
# The run lives in a tmux session on that machine and survives a lost connection. Call it again to
# see the last lines; once it is done, the report is copied to ./report.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
host=${1:?usage: bash dev/launch/cloud.sh user@host}

if ssh "$host" 'tmux has-session -t nanochat 2>/dev/null'; then
    ssh "$host" 'tail -n 5 nanochat/speedrun.log'
elif ssh "$host" 'test -f .cache/nanochat/report/report.md'; then
    scp -r "$host:.cache/nanochat/report" .
    echo "the report is in ./report"
else
    git archive --format=tar HEAD | ssh "$host" 'mkdir -p nanochat && tar -x -C nanochat'
    ssh "$host" 'cd nanochat && tmux new-session -d -s nanochat "bash speedrun.sh 2>&1 | tee speedrun.log"'
    echo "started on $host; call this again to look in on it"
fi
