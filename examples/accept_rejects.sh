#!/usr/bin/env bash
# Runs a command of batchpredict for a scheduler to which anything but 0 is a failure:
#     accept_rejects.sh batchpredict predict --job=nightly.toml
# Exit status 3 (published; some rows were rejected) becomes 0, with a line on standard error. All
# others stay. SIGTERM and SIGINT, which a shell would keep to itself, reach the command as SIGTERM.
set -uo pipefail

child=
signalled=
trap 'signalled=yes; [[ $child ]] && kill -s TERM "$child" 2>/dev/null' TERM INT
"$@" &
child=$!
[[ $signalled ]] && kill -s TERM "$child" # it came before there was a command to get it

# A signal ends `wait` with a status of its own, often before the command has ended. Asked again,
# `wait` tells that of the command, even if it is long gone.
signalled=yes
while [[ $signalled ]]; do
  signalled=
  wait "$child"
  status=$?
done

if ((status == 3)); then
  printf '%s\n' 'warning: published, but some rows were rejected: see the lines above' >&2
  status=0
fi
exit "$status"
