#!/usr/bin/env bash
# A search, on this machine or on the Ray cluster at RAY_ADDRESS.
# Usage: ./launch/search.sh SEARCH.yaml [OPTIONS AND SETTINGS OF imachsr search]
set -euo pipefail
if [[ $# -eq 0 || "$1" == -h || "$1" == --help ]]; then sed -n '2,3s/^# //p' "$0"; exit $(($# == 0 ? 2 : 0)); fi
source "$(dirname "$0")/environment.sh"
exec imachsr search "$@"
