#!/usr/bin/env bash
# Stops the API server of the test cluster and starts it again: the command that SP_RAY_TEST_RESTART_API names in CI.
set -euo pipefail
cluster="$(dirname "$0")/../../../shared/kubernetes/cluster"
# With it its clients: elsewhere the scheduler and the controllers end by themselves when it is away, as they lose their
# leases, and are started again. These have no leases, and look again after ever longer pauses, minutes in all; meanwhile
# no pod is placed, none of a deleted cluster is collected, and fake nodes are taken for lost.
read -ra pids <<<"$("$cluster" status | awk '$1 ~ /^(apiserver|scheduler|controller-manager|kwok)$/ {print $2}' | xargs)"
# At once: with watches open the API server takes a minute to end by itself, and refuses all the while.
kill -9 "${pids[@]}"
for pid in "${pids[@]}"; do
    while kill -0 "$pid" 2>/dev/null; do sleep 0.1; done
done
"$cluster" up >/dev/null
