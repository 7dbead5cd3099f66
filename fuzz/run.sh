#!/usr/bin/env bash
# Feeds each parser of what comes from outside for so many seconds: fuzz/run.sh [SECONDS] [TARGET…]
# Needs a nightly compiler and cargo-fuzz (cargo install cargo-fuzz). What was found is in fuzz/artifacts.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-600}
shift || true
targets=("$@")
[ "${#targets[@]}" -gt 0 ] || mapfile -t targets < <(cargo +nightly fuzz list)
failed=0
for target in "${targets[@]}"; do
  mkdir -p "fuzz/corpus/$target" "fuzz/seeds/$target"
  log=$(mktemp)
  cargo +nightly fuzz run "$target" "fuzz/corpus/$target" "fuzz/seeds/$target" -- \
    -max_total_time="$seconds" -timeout=5 -rss_limit_mb=2048 -max_len=65536 -print_final_stats=1 >"$log" 2>&1 || failed=1
  printf '%-12s %s runs, %s edges, %s inputs kept, %s\n' "$target" \
    "$(sed -n 's/^stat::number_of_executed_units: //p' "$log")" \
    "$(grep -o 'cov: [0-9]*' "$log" | tail -1 | cut -d' ' -f2)" "$(ls "fuzz/corpus/$target" | wc -l)" \
    "$(grep -m1 -E 'panicked at|ERROR: |Test unit written' "$log" || echo 'nothing found')"
  rm -f "$log"
done
exit "$failed"
