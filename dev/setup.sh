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

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3 python python3.13 python3.12 python3.11 python3.14; do
        [ -n "$candidate" ] || continue
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            "$candidate" -c 'import sys; print(sys.executable)'
            return
        fi
    done
    if uv --version >/dev/null 2>&1; then
        uv python find --no-project '>=3.11' 2>/dev/null || true
    fi
}

# Prints the path of a working uv; installs uv into .uv when there is none.
find_uv() {
    local python=$1 candidate
    for candidate in uv "$HOME/.local/bin/uv" .uv/bin/uv .uv/venv/bin/uv; do
        if "$candidate" --version >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
    say "uv not found, installing it into .uv"
    # A separate target folder works even where pip refuses to change the system's Python.
    if "$python" -m pip install --quiet --target .uv uv >/dev/null 2>&1 &&
        .uv/bin/uv --version >/dev/null 2>&1; then
        echo .uv/bin/uv
    elif "$python" -m venv .uv/venv >/dev/null 2>&1 &&
        .uv/venv/bin/pip install --quiet uv >/dev/null 2>&1 &&
        .uv/venv/bin/uv --version >/dev/null 2>&1; then
        echo .uv/venv/bin/uv
    fi
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
python=$(find_python)
[ -n "$python" ] || give_up "Python 3.11 or newer is required and was not found" \
    "Debian, Ubuntu: apt-get install python3 python3-venv python3-pip" \
    "macOS: brew install python" \
    "otherwise: install Python 3.11 or newer, then PYTHON=/path/to/python bash speedrun.sh"
rust_needed=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' rustbpe/Cargo.toml)
rust=$(rustc --version 2>/dev/null | cut -d' ' -f2) || true
[ "$(printf '%s\n' "$rust_needed" "${rust:-0}" | sort -V | head -n 1)" = "$rust_needed" ] &&
    cargo --version >/dev/null 2>&1 ||
    give_up "Rust $rust_needed or newer is required for the tokenizer, found: ${rust:-none}" \
        "any system: run the installer from https://rustup.rs, then open a new shell" \
        "macOS: brew install rust"
command -v cc >/dev/null || command -v gcc >/dev/null || command -v clang >/dev/null ||
    give_up "a C compiler is required to link the Rust code and was not found" \
        "Debian, Ubuntu: apt-get install build-essential" "macOS: xcode-select --install"
command -v c++ >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null ||
    say "notice: no C++ compiler found; models run eager instead of compiled, which is slower." \
        "To fix: apt-get install build-essential (macOS: xcode-select --install), then run again."
uv=$(find_uv "$python")
[ -n "$uv" ] || give_up "uv (the package installer) could not be installed with $python" \
    "Debian, Ubuntu: apt-get install python3-pip python3-venv, then run this again" \
    "or install uv in any other way and add it to the PATH"

say "installing into .venv (the first time downloads a few GB, mostly torch)"
export UV_HTTP_TIMEOUT="${UV_HTTP_TIMEOUT:-300}"
"$uv" sync --quiet --python "$python" || give_up "uv sync failed" \
    "see the message above; if the network failed, run the same command again to resume"
case "$uv" in .uv/*) ln -sf "$PWD/$uv" .venv/bin/uv ;; esac # for `uv sync --extra eval` by hand
.venv/bin/python -c 'import rustbpe, torch' || give_up "the environment in .venv does not work" \
    "see the message above; delete .venv (rm -r .venv) and run again"
fingerprint >"$stamp"
