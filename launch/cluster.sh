#!/usr/bin/env bash
# A Ray cluster: start it, run searches and trainings on it, look at them, end it.
#
# Usage: ./launch/cluster.sh up [OPTIONS OF ray up]
#        ./launch/cluster.sh submit SEARCH.yaml --output /mnt/shared/NAME budget.gpus_per_trial=1 [OPTIONS AND SETTINGS OF imachsr search]
#        ./launch/cluster.sh train RUN.yaml --output /mnt/shared/NAME --workers N [OPTIONS AND SETTINGS OF imachsr train]
#        ./launch/cluster.sh doctor [OPTIONS OF imachsr doctor]
#        ./launch/cluster.sh status
#        ./launch/cluster.sh logs JOB
#        ./launch/cluster.sh stop JOB
#        ./launch/cluster.sh dashboard
#        ./launch/cluster.sh down
#
# The cluster is the one of cluster.yaml, or of the file in CLUSTER. With RAY_API_SERVER_ADDRESS (http://HEAD:8265, through a tunnel) jobs go to a
# cluster that runs already, such as one on Kubernetes; all calls carry the token of ~/.ray/auth_token. Results must lie in a folder that all
# nodes share: --output /mnt/shared/... A WANDB_API_KEY of the environment goes to the head by SSH, where wandb login would keep it.
set -euo pipefail
usage() { sed -n '4,12s/^# //p' "$0"; }
case "${1:-}" in
    up | submit | train | doctor | status | logs | stop | dashboard | down) ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; exit 2 ;;
esac
source "$(dirname "$0")/environment.sh"
action="$1"
shift
cluster="${CLUSTER:-cluster.yaml}"
export RAY_AUTH_MODE="${RAY_AUTH_MODE:-token}"

up() {
    [[ "$RAY_AUTH_MODE" != token ]] || ray get-auth-token --generate >/dev/null || fail "the cluster's token must be made, but ray get-auth-token failed"
    ray up --yes "$@" "$cluster"
}

# Runs words on the head, in the project's folder; they pass two shells whole.
on_head() {
    ray exec "$cluster" "cd /home/ray/imachsr && export RAY_AUTH_MODE=$RAY_AUTH_MODE RAY_API_SERVER_ADDRESS=http://127.0.0.1:8265 && $(printf '%q ' "$@")"
}

job() { if [[ -n "${RAY_API_SERVER_ADDRESS:-}" ]]; then ray job "$@"; else on_head ray job "$@"; fi }

# The driver alone talks to W&B. Its key travels in a file of its owner's, not in a command line, a job's description or its log.
send_key() {
    local folder
    [[ -n "${WANDB_API_KEY:-}" ]] || return 0
    folder="$(mktemp -d)"
    (umask 077 && printf 'machine %s\n  login user\n  password %s\n' "$(sed -E 's|^https?://([^/:]+).*|\1|' <<<"${WANDB_BASE_URL:-https://api.wandb.ai}")" "$WANDB_API_KEY" >"$folder/netrc")
    ray rsync-up "$cluster" "$folder/netrc" /home/ray/.netrc || { rm -r "$folder"; fail "the W&B key must reach the head, but ray rsync-up failed (its message is above)"; }
    rm -r "$folder"
}

submit() {
    local id words
    id="imachsr-$1-$(date +%Y%m%d-%H%M%S)-$RANDOM"
    # The address of a W&B server of one's own is no secret.
    words="${WANDB_BASE_URL:+WANDB_BASE_URL=$(printf '%q' "$WANDB_BASE_URL") }python -m imachsr $(printf '%q ' "$@")"
    if [[ -n "${RAY_API_SERVER_ADDRESS:-}" ]]; then
        [[ -z "${WANDB_API_KEY:-}" ]] || say "WANDB_API_KEY stays here; the head must have its own (on Kubernetes the secret of launch/kubernetes/rayjob.yaml)"
        say "job $id: ./launch/cluster.sh logs $id"
        # The project travels with the job, without what .gitignore names.
        env -u WANDB_API_KEY ray job submit --submission-id "$id" --working-dir . -- bash -c "$words"
    else
        ray rsync-up "$cluster" "$PWD/" /home/ray/imachsr/
        send_key
        say "job $id: ./launch/cluster.sh logs $id"
        on_head ray job submit --submission-id "$id" -- bash -c "cd /home/ray/imachsr && $words"
    fi
}

status() {
    if [[ -n "${RAY_API_SERVER_ADDRESS:-}" ]]; then
        ray list nodes --address "$RAY_API_SERVER_ADDRESS"
    else
        on_head ray status
    fi
    job list
}

case "$action" in
    up) up "$@" ;;
    submit) [[ $# -gt 0 ]] || fail "submit must be followed by a search's YAML file"; submit search "$@" ;;
    train) [[ $# -gt 0 ]] || fail "train must be followed by a run's YAML file"; submit train "$@" ;;
    doctor) submit doctor --address auto "$@" ;;
    status) status ;;
    logs) [[ $# -eq 1 ]] || fail "logs must be followed by a job; ./launch/cluster.sh status lists them"; job logs --follow "$1" ;;
    stop) [[ $# -eq 1 ]] || fail "stop must be followed by a job; ./launch/cluster.sh status lists them"; job stop "$1" ;;
    dashboard) ray dashboard "$cluster" ;;
    down) ray down --yes "$cluster" ;;
esac
