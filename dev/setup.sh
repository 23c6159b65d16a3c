#!/usr/bin/env bash
# Set up everything in .venv: Python packages by uv, the Rust core by maturin. Safe to repeat; when
# nothing has changed it returns at once and asks no network.
#
#   bash dev/setup.sh        PYTHON=/path/to/python chooses the interpreter
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '%s\n' "$*" >&2; }
give_up() {
    say "error: $1"
    shift
    for line in "$@"; do say "  $line"; done
    exit 1
}

# What the environment was made from: a change of any of these makes it anew.
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

# Prints the path of a uv that runs; installs one into .uv when there is none.
find_uv() {
    local python=$1 candidate
    for candidate in uv "$HOME/.local/bin/uv" .uv/bin/uv .uv/venv/bin/uv; do
        if "$candidate" --version >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
    say "uv is not there: installing it into .uv"
    # A folder of its own is allowed even where pip refuses to touch the system's Python.
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

export PATH="$PATH:$HOME/.cargo/bin"
python=$(find_python)
[ -n "$python" ] || give_up "no Python 3.11 or newer was found" \
    "Debian, Ubuntu: apt-get install python3 python3-venv python3-pip" \
    "macOS: brew install python" \
    "elsewhere: any way that gives a python3.11 or newer; then PYTHON=/path/to/it bash speedrun.sh"
rust_needed=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' rustbpe/Cargo.toml)
rust=$(rustc --version 2>/dev/null | cut -d' ' -f2) || true
[ "$(printf '%s\n' "$rust_needed" "${rust:-0}" | sort -V | head -n 1)" = "$rust_needed" ] &&
    cargo --version >/dev/null 2>&1 ||
    give_up "Rust $rust_needed or newer is needed for the tokenizer's core, found: ${rust:-none}" \
        "any system: the installer of https://rustup.rs, then open a new shell" \
        "macOS: brew install rust"
command -v cc >/dev/null || command -v gcc >/dev/null || command -v clang >/dev/null ||
    give_up "no C compiler was found; Rust needs one to link" \
        "Debian, Ubuntu: apt-get install build-essential" "macOS: xcode-select --install"
command -v c++ >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null ||
    say "notice: no C++ compiler was found; models run eager instead of compiled, which is slower." \
        "Way out: apt-get install build-essential (macOS: xcode-select --install), and run again."
uv=$(find_uv "$python")
[ -n "$uv" ] || give_up "uv, which installs the packages, could not be installed by $python" \
    "Debian, Ubuntu: apt-get install python3-pip python3-venv, then run this again" \
    "or install uv in any other way and put it on the PATH"

say "installing into .venv (the first time downloads a few GB, most of it torch)"
export UV_HTTP_TIMEOUT="${UV_HTTP_TIMEOUT:-300}"
"$uv" sync --quiet --python "$python" || give_up "uv sync did not finish" \
    "its reason stands above; on a poor network run the same command again: it goes on where it was"
.venv/bin/python -c 'import rustbpe, torch' || give_up "the environment in .venv does not work" \
    "its reason stands above; rm -r .venv and run again"
fingerprint >"$stamp"
