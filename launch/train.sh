#!/usr/bin/env bash
# One training; with --workers N on N Ray Train workers, on this machine or on the cluster at RAY_ADDRESS.
# Usage: ./launch/train.sh RUN.yaml [OPTIONS AND SETTINGS OF imachsr train]
set -euo pipefail
usage() { sed -n '2,3s/^# //p' "$0"; }
case "${1:-}" in
    "") usage >&2; exit 2 ;;
    -h | --help) usage; exit 0 ;;
esac
source "$(dirname "$0")/environment.sh"
cd "$caller"
exec imachsr train "$@"
