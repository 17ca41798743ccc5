#!/usr/bin/env bash
# Make one virtual environment match its lock, then write the stamp that says so.
#
#   scripts/setup.sh ENVIRONMENT LOCK STAMP
#
# The Makefile names the stamp after the lock's content and the checkout's place, and calls this
# only when that stamp is absent. PYTHON may name the interpreter; it has to be Python 3.11.
set -euo pipefail
cd "$(dirname "$0")/.."
environment=$1 lock=$2 stamp=$3

is_311() {
    "$1" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null
}

find_python() {
    local candidate found=""
    if [ -n "${PYTHON:-}" ]; then set -- "$PYTHON"; else set -- python3.11 python3 python; fi
    for candidate; do
        if is_311 "$candidate"; then
            echo "$candidate"
            return
        fi
        found+="  $candidate: $("$candidate" --version 2>&1 | tail -n 1 || true)"$'\n'
    done
    echo "Trailwatch needs Python 3.11, and found:" >&2
    echo "${found}Install it, or say where it is: make setup PYTHON=/path/to/python3.11" >&2
    return 1
}

say() { echo "[$environment] $*"; }

# Ready to use only if it is Python 3.11 and was made here: a moved checkout breaks its scripts.
make_environment() {
    local python=$1
    if is_311 "$environment/bin/python" && grep -qF "$PWD/$environment" "$environment/pyvenv.cfg"; then
        return
    fi
    say "making a virtual environment with $("$python" --version)"
    if ! "$python" -m venv --clear "$environment"; then
        echo "$python cannot make virtual environments; on Debian: apt install python3.11-venv" >&2
        return 1
    fi
}

python=$(find_python)
make_environment "$python"
if [ "$environment" = .venv ]; then
    uv=$(sed -n 's/^\(uv==[^ ]*\).*/\1/p' "$lock")
    say "installing $uv"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check "$uv"
fi
say "installing $(grep -c '^[a-z]' "$lock") packages from $lock"
scripts/uv.sh pip install --python "$environment/bin/python" --requirements "$lock"
rm -f "$environment"/.lock-*
touch "$stamp"
say "ready"
