#!/usr/bin/env bash
# A search, on this machine or on the Ray cluster at RAY_ADDRESS.
# Usage: ./launch/search.sh SEARCH.yaml [OPTIONS AND SETTINGS OF imachsr search]
set -euo pipefail
usage() { sed -n '2,3s/^# //p' "$0"; }
case "${1:-}" in
    "") usage >&2; exit 2 ;;
    -h | --help) usage; exit 0 ;;
esac
source "$(dirname "$0")/environment.sh"
cd "$caller"
exec imachsr search "$@"
