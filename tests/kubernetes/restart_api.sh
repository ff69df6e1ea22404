#!/usr/bin/env bash
# Stops the API server of the test cluster and starts it again: the command that SP_RAY_TEST_RESTART_API names in CI.
set -euo pipefail
cluster="$(dirname "$0")/../../../shared/kubernetes/cluster"
pid="$("$cluster" status | awk '$1 == "apiserver" {print $2}')"
# At once: with watches open it takes a minute to end by itself, and refuses all the while.
kill -9 "$pid"
while kill -0 "$pid" 2>/dev/null; do sleep 0.1; done
"$cluster" up >/dev/null
