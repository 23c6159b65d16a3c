#!/usr/bin/env bash
# Run speedrun.sh on a remote machine over ssh and copy the report when it is done.
#
#   bash dev/launch/cloud.sh user@host      start the run, show its progress, or copy the report
#
# The run is in a tmux session on that machine and survives a lost connection. Run the same command
# again to see the last lines of its log; after the run it copies the report to ./report.
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
    echo "started on $host; run the same command again to see its progress"
fi
