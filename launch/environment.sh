# Sourced by the scripts beside it: makes .venv from requirements.lock where it is missing or out of date, activates it, and leaves the
# project's folder as the current one; the user's paths are relative to $caller.
# shellcheck disable=SC2034  # read by those scripts
caller="$PWD"
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit

say() { printf '\n== %s\n' "$*" >&2; }
fail() { printf 'error: %s\n' "$*" >&2; exit 2; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3}; do
        if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    fail "Python 3.11, 3.12 or 3.13 must be installed, but none of ${PYTHON:-python3.11 python3.12 python3.13 python3} is; set PYTHON=/path/to/python"
}

prepare() {
    local python stamp started
    stamp="$(cat requirements.lock pyproject.toml | sha256sum | cut -d' ' -f1)"
    if [[ "$(cat .venv/installed 2>/dev/null || true)" != "$stamp" ]]; then
        python="$(find_python)" || exit 2
        started=$SECONDS
        say "creating .venv with $("$python" --version)"
        "$python" -m venv .venv || fail "a virtual environment must be possible, but $python -m venv failed; on Debian and Ubuntu: apt install python3-venv"
        say "installing from requirements.lock (1 to 5 minutes; torch is large)"
        # The lock is complete, so nothing has to be resolved.
        .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements.lock || fail "the packages of requirements.lock must install, but pip failed (its message is above)"
        .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e . || fail "this project must install, but pip failed (its message is above)"
        echo "$stamp" >.venv/installed
        say "installed in $((SECONDS - started)) s"
    fi
    export PATH="$PWD/.venv/bin:$PATH"
}

prepare
