#!/usr/bin/env bash
# Set up .venv: Python packages with uv, the Rust core with maturin. Safe to repeat; returns at once,
# without using the network, when nothing has changed.
#
#   bash dev/setup.sh        PYTHON=/path/to/python chooses the interpreter
if [ -z "${BASH_VERSION:-}" ]; then exec bash "$0" "$@"; fi
set -euo pipefail
unset CDPATH # which would lead `cd` elsewhere
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '%s\n' "$*" >&2; }
give_up() {
    say "error: $1"
    shift
    for line in "$@"; do say "  $line"; done
    exit 1
}

# A change of any of these files sets up the environment again.
fingerprint() {
    cat pyproject.toml rustbpe/Cargo.toml rustbpe/src/*.rs | cksum
}

# Prints what uv gets as --python: an interpreter of this system, or what uv may download.
find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3 python python3.13 python3.12 python3.11 python3.14; do
        [ -n "$candidate" ] || continue
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            "$candidate" -c 'import sys; print(sys.executable)'
            return
        fi
    done
    echo '>=3.11,<3.14'
}

# Prints the path of a working uv; installs uv into .uv when there is none, with any Python 3.
find_uv() {
    local python candidate
    for candidate in uv "$HOME/.local/bin/uv" .uv/bin/uv .uv/venv/bin/uv; do
        if "$candidate" --version >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
    say "uv not found, installing it into .uv"
    for python in "${PYTHON:-python3}" python3 python; do
        # A separate target folder works even where pip refuses to change the system's Python.
        if "$python" -m pip install --quiet --target .uv uv >/dev/null 2>&1 &&
            .uv/bin/uv --version >/dev/null 2>&1; then
            echo .uv/bin/uv
            return
        elif "$python" -m venv .uv/venv >/dev/null 2>&1 &&
            .uv/venv/bin/pip install --quiet uv >/dev/null 2>&1 &&
            .uv/venv/bin/uv --version >/dev/null 2>&1; then
            echo .uv/venv/bin/uv
            return
        fi
    done
}

has_any() {
    local name
    for name in "$@"; do
        if command -v "$name" >/dev/null; then return; fi
    done
    return 1
}

sudo="sudo "
if [ "$(id -u)" = 0 ]; then sudo=""; fi
apt_install() { echo "${sudo}apt-get update && ${sudo}apt-get install -y $1"; }

# Name what is missing and print one line to paste that installs it.
check_tools() { # check_tools UV
    local missing="" debian="" mac="" paste="" needed found
    if ! has_any cc gcc clang; then
        missing+=", a C compiler"
        debian+=" build-essential"
        mac+=" && xcode-select --install"
    fi
    if [ -z "$1" ]; then
        missing+=", uv, or a Python 3 with pip or venv to install it"
        debian+=" python3-pip python3-venv"
        mac+=" && brew install uv"
    fi
    needed=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' rustbpe/Cargo.toml)
    found=$(rustc --version 2>/dev/null | cut -d' ' -f2) || true
    if [ "$(printf '%s\n' "$needed" "${found:-0}" | sort -V | head -n 1)" != "$needed" ] ||
        ! cargo --version >/dev/null 2>&1; then
        missing+=", Rust $needed or newer (found: ${found:-none})"
        if ! has_any curl; then debian+=" curl"; fi
        paste=" && curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y"
    fi
    [ -n "$missing" ] || return 0
    if [ -n "$debian" ] && has_any apt-get; then
        paste=" && $(apt_install "${debian# }")$paste"
    elif [ "$(uname)" = Darwin ]; then
        paste="$mac$paste"
    elif [ -n "$debian" ]; then
        give_up "missing: ${missing#, }; install it with the package manager of this system" \
            ${paste:+"Rust: ${paste# && }"}
    fi
    give_up "missing: ${missing#, }; paste this line, then run the same command again:" "${paste# && }"
}

# Where there is no Python for these packages, uv downloads one; if it cannot, print one line to paste.
explain_failed_sync() { # explain_failed_sync UV PYTHON
    local line="PYTHON=/path/to/python bash speedrun.sh"
    if "$1" python find "$2" >/dev/null 2>&1; then
        give_up "uv sync failed, see above; if it was the network, run the same command again to resume"
    elif has_any apt-cache && [ -n "$(apt-cache search '^python3[.]11-dev$' 2>/dev/null)" ]; then
        line=$(apt_install python3.11-dev) # of Ubuntu 22.04, beside its Python 3.10
    fi
    give_up "missing: Python 3.11 or newer; paste this line, then run the same command again:" "$line"
}

stamp=.venv/.nanochat-setup
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(fingerprint)" ] && .venv/bin/python -c 'import rustbpe'; then
    exit 0
fi

HOME="${HOME:-}" # unset in some containers
export PATH="$PATH:$HOME/.cargo/bin"
export UV_PROJECT_ENVIRONMENT=.venv # whatever it is elsewhere: the commands expect it here
if [ ! -w "$HOME" ]; then
    export UV_CACHE_DIR="${UV_CACHE_DIR:-$PWD/.uv/cache}" CARGO_HOME="${CARGO_HOME:-$PWD/.uv/cargo}"
fi
uv=$(find_uv)
check_tools "$uv"
has_any c++ g++ clang++ ||
    say "notice: no C++ compiler found; models run eager instead of compiled, which is slower." \
        "To fix: apt-get install build-essential (macOS: xcode-select --install), then run again."
python=$(find_python)

say "installing into .venv (the first time downloads a few GB, mostly torch)"
export UV_HTTP_TIMEOUT="${UV_HTTP_TIMEOUT:-300}"
# --inexact keeps the extras that were added by hand, as with `uv sync --extra tracker`.
"$uv" sync --quiet --inexact --python "$python" || explain_failed_sync "$uv" "$python"
case "$uv" in .uv/*) ln -sf "$PWD/$uv" .venv/bin/uv ;; esac # for `uv sync --extra eval` by hand
.venv/bin/python -c 'import rustbpe, torch' || give_up "the environment in .venv does not work" \
    "see the message above; delete .venv (rm -r .venv) and run again"
fingerprint >"$stamp"
