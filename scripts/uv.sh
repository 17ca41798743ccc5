#!/usr/bin/env bash
# Run the ML environment's uv with the package sources that pip is configured with.
#
# uv reads none of pip's settings. A machine whose pip has an index, extra indexes, find-links or
# a certificate of its own expects them to be used, so they are translated here, at run time: no
# address of any machine is ever written down. A UV_ variable that is already set wins.
set -euo pipefail
cd "$(dirname "$0")/.."

# The effective value of one pip setting; as in pip, the environment wins over pip's files.
configured() {
    local variable="PIP_$(tr 'a-z-' 'A-Z_' <<<"$1")"
    if [ -n "${!variable:-}" ]; then
        echo "${!variable}"
    else
        .venv/bin/python -m pip config get "global.$1" 2>/dev/null || true
    fi
}

# Set the variable $1 to the value $2, unless it is set already or the value is empty.
default() {
    if [ -z "${!1:-}" ] && [ -n "$2" ]; then export "$1=$2"; fi
}

default UV_DEFAULT_INDEX "$(configured index-url)"
default UV_INDEX "$(configured extra-index-url | tr '\n' ' ')"
default UV_FIND_LINKS "$(configured find-links | tr '\n ' ',,' | sed 's/,*$//')"
default SSL_CERT_FILE "$(configured cert)"
default UV_HTTP_TIMEOUT 180
# pip treats all its indexes as equals; uv by default stops at the first that has the name.
default UV_INDEX_STRATEGY unsafe-best-match

exec .venv/bin/uv --no-config "$@"
