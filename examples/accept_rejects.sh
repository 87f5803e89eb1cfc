#!/usr/bin/env bash
# Runs a command of batchpredict for a scheduler to which anything but 0 is a failure:
#     accept_rejects.sh batchpredict predict --job=nightly.toml
# Exit status 3 (published; some rows were rejected) becomes 0, with a line on standard error. All
# others stay. SIGTERM and SIGINT, which a shell would keep to itself, reach the command as SIGTERM.
set -uo pipefail

"$@" &
child=$!
trap 'kill -s TERM "$child" 2>/dev/null' TERM INT

wait "$child"
status=$?
# A signal ends `wait` before the command has ended.
while kill -0 "$child" 2>/dev/null; do
  wait "$child"
  status=$?
done

if ((status == 3)); then
  printf '%s\n' 'warning: published, but some rows were rejected: see the lines above' >&2
  status=0
fi
exit "$status"
