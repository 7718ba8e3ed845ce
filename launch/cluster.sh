#!/usr/bin/env bash
# A Ray cluster: start it, run a search or a training on it, end it.
#
# Usage: ./launch/cluster.sh up [OPTIONS OF ray up]
#        ./launch/cluster.sh submit SEARCH.yaml --output /mnt/shared/NAME budget.gpus_per_trial=1 [OPTIONS AND SETTINGS OF imachsr search]
#        ./launch/cluster.sh train RUN.yaml --output /mnt/shared/NAME --workers N [OPTIONS AND SETTINGS OF imachsr train]
#        ./launch/cluster.sh dashboard
#        ./launch/cluster.sh down
#
# The cluster is the one of cluster.yaml, or of the file in CLUSTER. With RAY_API_SERVER_ADDRESS (http://HEAD:8265) jobs go to a
# cluster that runs already, such as one on Kubernetes. Results must lie in a folder that all nodes share: --output /mnt/shared/...
set -euo pipefail
usage() { sed -n '4,8s/^# //p' "$0"; }
case "${1:-}" in
    up | submit | train | dashboard | down) ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; exit 2 ;;
esac
source "$(dirname "$0")/environment.sh"
action="$1"
shift
cluster="${CLUSTER:-cluster.yaml}"

submit() {
    if [[ -n "${RAY_API_SERVER_ADDRESS:-}" ]]; then
        # The project travels with the job, without what .gitignore names.
        ray job submit --working-dir . -- python -m imachsr "$@"
    else
        ray rsync-up "$cluster" "$PWD/" /home/ray/imachsr/
        ray exec "$cluster" "cd /home/ray/imachsr && ray job submit --address http://127.0.0.1:8265 -- bash -c $(printf '%q' "cd /home/ray/imachsr && python -m imachsr $(printf '%q ' "$@")")"
    fi
}

case "$action" in
    up) ray up --yes "$@" "$cluster" ;;
    submit) [[ $# -gt 0 ]] || fail "submit must be followed by a search's YAML file"; submit search "$@" ;;
    train) [[ $# -gt 0 ]] || fail "train must be followed by a run's YAML file"; submit train "$@" ;;
    dashboard) ray dashboard "$cluster" ;;
    down) ray down --yes "$cluster" ;;
esac
