#!/usr/bin/env bash
# Linters, type checker and tests.
# Usage: ./launch/test.sh [OPTIONS OF pytest], such as --long, --slow or tests/core
set -euo pipefail
case "${1:-}" in -h | --help) sed -n '2,3s/^# //p' "$0"; exit 0 ;; esac
source "$(dirname "$0")/environment.sh"
say "ruff"
ruff check .
ruff format --check .
say "mypy"
mypy
say "import rules"
lint-imports --no-cache
say "pytest"
exec python -m pytest "$@"
