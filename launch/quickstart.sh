#!/usr/bin/env bash
# A real search on procedural street scenes, on this machine, in two to five minutes after the installation.
# Usage: ./launch/quickstart.sh [OPTIONS AND SETTINGS OF imachsr search]
set -euo pipefail
case "${1:-}" in -h | --help) sed -n '2,3s/^# //p' "$0"; exit 0 ;; esac
source "$(dirname "$0")/environment.sh"
project="$PWD"
cd "$caller"
say "searching on procedural street scenes"
imachsr search "$project/search_spaces/quickstart.yaml" "$@"
say "imachsr is in .venv: source $(printf '%q' "$project")/.venv/bin/activate"
