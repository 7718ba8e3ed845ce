#!/usr/bin/env bash
# One training; with --workers N on N Ray Train workers, on this machine or on the cluster at RAY_ADDRESS.
# Usage: ./launch/train.sh RUN.yaml [OPTIONS AND SETTINGS OF imachsr train]
set -euo pipefail
if [[ $# -eq 0 || "$1" == -h || "$1" == --help ]]; then sed -n '2,3s/^# //p' "$0"; exit $(($# == 0 ? 2 : 0)); fi
source "$(dirname "$0")/environment.sh"
exec imachsr train "$@"
