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

version() {
    if command -v "$1" >/dev/null; then "$1" --version 2>&1 | grep -m 1 . || true; else echo absent; fi
}

find_python() {
    local candidate found=""
    if [ -n "${PYTHON:-}" ]; then set -- "$PYTHON"; else set -- python3.11 python3 python; fi
    for candidate; do
        if is_311 "$candidate"; then
            echo "$candidate"
            return
        fi
        found+="  $candidate: $(version "$candidate")"$'\n'
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
    .venv/bin/python -m pip install -qq --disable-pip-version-check "$uv"
fi
say "installing $(grep -c '^[a-z]' "$lock") packages from $lock"
install() { scripts/uv.sh pip install --python "$environment/bin/python" --requirements "$lock"; }
if [ -t 2 ]; then
    install # with progress bars
else
    install 2> >(grep -v '^ [-+~] ' >&2) # without a line for every package
fi
rm -f "$environment"/.lock-*
touch "$stamp"
say "ready"
