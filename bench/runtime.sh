#!/bin/sh
# Times OCI runtimes alone: create, start, wait and delete of a container that does nothing, taking turns.
# usage: runtime.sh BUNDLE RUNTIME… (each a command such as "dhow runtime", "crun", "runc"); prints microseconds a run
bundle=$1; shift
cd "$bundle" || exit 1
for round in 1 2 3; do
  for runtime in "$@"; do
    start=$(date +%s%N)
    for number in $(seq 100); do $runtime run "bench-$number" >/dev/null </dev/null || exit 1; done
    echo "$(( ($(date +%s%N) - start) / 100000 )) us  $runtime"
  done
done
