#!/usr/bin/env bash
# Compile requirements/*.in into the locks. A pinned version stays unless it no longer fits;
# `scripts/lock.sh --upgrade` takes the newest of everything that is not pinned.
set -euo pipefail
cd "$(dirname "$0")/.."

for name in ml airflow; do
    lock=requirements/$name.txt
    draft=$(mktemp)
    # torch's own line stays out of the draft: "2.13.0" would be taken for the registry's CUDA build.
    if [ -f "$lock" ]; then grep -v '^torch==' "$lock" >"$draft" || true; fi
    scripts/uv.sh pip compile --quiet --python-version 3.11.0 "requirements/$name.in" \
        --output-file "$draft" --no-header --no-emit-index-url --no-emit-find-links "$@"
    if grep -q '^nvidia-' "$draft"; then
        echo "warning: $lock: no CPU build of torch in sight, so CUDA packages were locked" >&2
    fi
    # A local version such as 2.13.0+cpu exists only where that build is; elsewhere any build will do.
    sed 's/^\([a-z0-9.-]*==[^+ ]*\)+[^ ]*/\1/' "$draft" >"$lock"
    rm -f "$draft"
    echo "$lock: $(grep -c '^[a-z]' "$lock") packages"
done
