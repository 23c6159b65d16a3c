"""Environments in which commands are started: no home, closed streams, other encodings, shells."""

import asyncio
import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nanochat.errors import UserError
from nanochat.web.http_server import serve

ROOT = Path(__file__).parents[1]
NO_HOME = """
import pwd

def unknown(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")

pwd.getpwuid = unknown
"""


def run_main(
    body: str, redirect: str = "", stdin: bytes = b"", **environment: str
) -> subprocess.CompletedProcess[bytes]:
    """Run a command whose main is `body`, in the shell, with standard streams redirected."""
    program = (
        f"from nanochat import configurator, paths\nimport os, sys\n{body}\nconfigurator.run(main)"
    )
    kept = {name: value for name, value in os.environ.items() if name != "NANOCHAT_BASE_DIR"}
    return subprocess.run(
        ["sh", "-c", f'exec "$0" -c "$1" {redirect}', sys.executable, program],
        cwd=ROOT, env={**kept, **environment}, input=stdin, capture_output=True,
    )  # fmt: skip


# ---- commands


def test_without_a_home_directory_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    done = run_main(NO_HOME + "def main(): print(paths.base_dir())")
    assert done.returncode == 2
    assert done.stderr.decode().splitlines() == [
        "error: Could not determine home directory. Set NANOCHAT_BASE_DIR, and use paths without ~"
    ]
    assert run_main("def main(): raise RuntimeError('other')").returncode == 1  # a traceback


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-"])
def test_what_is_printed_to_a_closed_stream_goes_to_no_file(tmp_path: Path, closed: str) -> None:
    path = tmp_path / "file"
    body = f"""
def main():
    with open({str(path)!r}, "w") as file:
        print("noise", sys.stdin.read())
        print("noise", file=sys.stderr)
        os.write(1, b"noise"), os.write(2, b"noise")
        file.write("content")
"""
    assert run_main(body, closed).returncode == 0
    assert path.read_text() == "content"


def test_what_a_terminal_cannot_show_is_replaced() -> None:
    body = "def main(): print(sys.stdin.read()); print('caf\\u00e9 \\ud800', file=sys.stderr)"
    done = run_main(body, stdin=b"\xff\xe9", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"??\n", b"caf? ?\n")


# ---- another Python, notebooks


@pytest.mark.parametrize(
    "command", ["-m scripts.base_train", "-m nanochat.dataset", "scripts/tok_eval.py"]
)
def test_a_python_without_the_packages_names_the_remedy(command: str) -> None:
    python = Path(sys._base_executable)  # type: ignore[attr-defined]
    has_torch = subprocess.run([python, "-c", "import torch"], capture_output=True).returncode == 0
    if has_torch:
        pytest.skip("the packages are installed in the system's Python")
    done = subprocess.run(
        [python, *command.split()],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "has no package" in done.stderr and "run bash dev/setup.sh" in done.stderr


@pytest.mark.parametrize("version", [(2, 7), (3, 6), (3, 10)])
@pytest.mark.parametrize("package", ["nanochat", "scripts"])
def test_an_old_python_is_named_before_anything_is_imported(
    monkeypatch: pytest.MonkeyPatch, package: str, version: tuple[int, int]
) -> None:
    monkeypatch.setattr(sys, "version_info", version)
    monkeypatch.delitem(sys.modules, "nanochat")
    with pytest.raises(SystemExit, match=r"^error: Python 3\.11 or newer is needed"):
        exec((ROOT / package / "__init__.py").read_text(), {})


@pytest.mark.parametrize(
    "backend", ["nonsense", "module://nowhere", "module://matplotlib_inline.x"]
)
def test_any_plot_backend_of_the_environment_can_stay(backend: str) -> None:
    program = (
        "from nanochat.report import figures\n"
        "panel = figures.Panel('loss', {'': [(1, 2.0), (2, 1.0)]}, 'step')\n"
        "print(figures.as_svg(panel, 'x')[:4])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT, env={**os.environ, "MPLBACKEND": backend}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout == "<svg\n", done.stderr


def test_a_file_may_be_run_as_by_a_notebook() -> None:
    program = (
        "import runpy, sys\n"
        "sys.argv = ['scripts/tok_eval.py', '--device_typ=x']\n"
        "sys.modules['__main__'].__file__ = sys.argv[0]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: --device_typ is not an option")
    assert done.stderr.count("\n") == 1


def test_a_server_in_a_notebook_is_one_line() -> None:
    async def cell() -> None:
        serve(None, [])

    with pytest.raises(UserError, match="a notebook cannot serve"):
        asyncio.run(cell())


# ---- shell scripts


@pytest.mark.parametrize("shell", ["bash", "sh", "dash"])
@pytest.mark.parametrize("script", ["speedrun.sh", "run1000.sh", "dev/runcpu.sh"])
def test_speedrun_has_help_and_refuses_arguments(shell: str, script: str) -> None:
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}

    def run(argument: str) -> subprocess.CompletedProcess[str]:
        command = [shell, script, argument]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)

    done = run("--help")
    assert done.returncode == 0 and "NANOCHAT_TIER=cpu bash speedrun.sh" in done.stdout
    done = run("--tier=cpu")
    assert done.returncode == 2
    assert done.stderr.startswith("error: --tier=cpu: speedrun.sh takes no arguments")


def test_speedrun_without_a_home_names_the_remedy() -> None:
    done = subprocess.run(
        ["bash", "speedrun.sh"],
        cwd=ROOT, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2 and "set NANOCHAT_BASE_DIR" in done.stderr


def test_speedrun_checks_files_and_options_of_late_stages_before_it_starts(tmp_path: Path) -> None:
    (tmp_path / "me.json").write_text('{"instruction": "Who are you?", "output": "A test."}')

    def run(**variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", str(ROOT / "speedrun.sh")],
            cwd=tmp_path, capture_output=True, text=True,
            env={**os.environ, "NANOCHAT_BASE_DIR": "base", "NANOCHAT_TIER": "smoke", **variables},
        )  # fmt: skip

    # Paths are those of the folder in which it is started.
    done = run(IDENTITY_FILE="me.json", RL_ARGS="--num_epoch=2")
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: --num_epoch is not an option")
    done = run(IDENTITY_FILE="you.json")
    assert done.returncode == 2 and f"{tmp_path / 'you.json'} does not exist" in done.stderr
    lock = tmp_path / "base" / ".speedrun.lock"
    assert list(lock.parent.iterdir()) == [lock]
    with lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # as a running one does
        done = run()
    assert done.returncode == 2 and "another speedrun.sh is running in" in done.stderr


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with dev/setup.sh, and a folder bin with programs that only note how they ran."""
    root = tmp_path / "checkout"
    for name in ("dev/setup.sh", "pyproject.toml", "rustbpe/Cargo.toml"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text((ROOT / name).read_text(encoding="utf-8"))
    (root / "rustbpe" / "src").mkdir()
    (root / "rustbpe" / "src" / "lib.rs").touch()
    (root / "bin").mkdir()
    make_environment = (
        'echo "$UV_PROJECT_ENVIRONMENT $UV_CACHE_DIR" > sync.txt; echo "$@" > arguments.txt\n'
        "mkdir -p .venv/bin; printf '#!/bin/sh\\n' > .venv/bin/python; chmod +x .venv/bin/python"
    )
    programs = {"uv": f'[ "$1" = sync ] || exit 0\n{make_environment}', "rustc": "echo rustc 9.9.9"}
    for name in ("uv", "rustc", "cargo", "cc", "c++"):
        path = root / "bin" / name
        path.write_text(f"#!/bin/sh\n{programs.get(name, '')}\n")
        path.chmod(0o755)
    return root


def set_up(checkout: Path, code: int = 0, **environment: str) -> str:
    """Run dev/setup.sh, which must exit with the code; returns what it printed."""
    done = subprocess.run(
        ["bash", "dev/setup.sh"],
        cwd=checkout, env={"PATH": f"{checkout / 'bin'}:{os.environ['PATH']}", **environment},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def replace_tools(checkout: Path, **programs: str) -> str:
    """Have these shell programs and the basic ones, and no others; returns that PATH."""
    for path in (checkout / "bin").iterdir():
        path.unlink()
    for name in [
        "bash",
        "cat",
        "chmod",
        "cksum",
        "cut",
        "dirname",
        "head",
        "id",
        "mkdir",
        "sed",
        "sh",
        "sort",
    ]:
        programs.setdefault(name, f'exec {shutil.which(name)} "$@"')  # no links to write through
    for name, body in programs.items():
        path = checkout / "bin" / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
    return str(checkout / "bin")


def test_set_up_uses_its_own_environment_with_and_without_a_home(checkout: Path) -> None:
    set_up(checkout, UV_PROJECT_ENVIRONMENT="/elsewhere")
    cache = checkout / ".uv" / "cache"
    assert (checkout / "sync.txt").read_text() == f".venv {cache}\n"
    assert set_up(checkout) == ""  # nothing has changed


def test_set_up_keeps_extras_that_were_added_by_hand(checkout: Path) -> None:
    set_up(checkout)
    assert "--inexact" in (checkout / "arguments.txt").read_text().split()


@pytest.mark.parametrize(
    ("user", "tools", "line"),
    [
        (0, ["uname", "apt-get"], "apt-get update && apt-get install -y build-essential python3-pip"
         " python3-venv curl && curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s"
         " -- -y"),
        (1000, ["uname", "apt-get", "cargo", "rustc", "curl"],
         "sudo apt-get update && sudo apt-get install -y build-essential python3-pip python3-venv"),
        (1000, ["uname", "cc", "uv", "curl"],
         "curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y"),
    ],
)  # fmt: skip
def test_set_up_without_tools_prints_one_line_to_paste(
    checkout: Path, user: int, tools: list[str], line: str
) -> None:
    programs = dict.fromkeys(tools, "echo rustc 9.9.9")
    path = replace_tools(checkout, **programs, id=f"echo {user}")
    output = set_up(checkout, code=1, PATH=path).splitlines()
    assert output[-2].startswith("error: missing: ") and output[-2].endswith("same command again:")
    assert output[-1].strip() == line
    assert ("Rust" in output[-2]) == ("rustup" in line)


def test_set_up_with_an_old_python_lets_uv_install_a_newer_one(checkout: Path) -> None:
    uv = (checkout / "bin" / "uv").read_text().removeprefix("#!/bin/sh\n")
    tools = dict.fromkeys(("cargo", "cc", "c++"), "")
    old = "case $* in *version_info*) exit 1 ;; esac"
    path = replace_tools(checkout, uv=uv, python3=old, rustc="echo rustc 9.9.9", **tools)
    set_up(checkout, PATH=path)
    assert "--python >=3.11,<3.14" in (checkout / "arguments.txt").read_text()


@pytest.mark.parametrize(
    ("finds_python", "packages", "words"),
    [
        ("exit 1", "python3.11-dev - header files", "apt-get install -y python3.11-dev"),
        ("exit 1", "", "PYTHON=/path/to/python bash speedrun.sh"),
        ("exit 0", "", "run the same command again to resume"),
    ],
)
def test_set_up_with_an_old_python_and_no_newer_one_prints_one_line_to_paste(
    checkout: Path, finds_python: str, packages: str, words: str
) -> None:
    path = replace_tools(
        checkout,
        uv=f'case "$1" in sync) exit 1 ;; python) {finds_python} ;; esac',
        python3="case $* in *version_info*) exit 1 ;; esac",
        rustc="echo rustc 9.9.9",
        **{"apt-cache": f'echo "{packages}"'},
        **dict.fromkeys(("cargo", "cc", "c++", "apt-get"), ""),
    )
    *_, error, line = set_up(checkout, code=1, PATH=path).splitlines()
    is_missing = "error: missing: Python 3.11 or newer; paste this line" in error
    assert is_missing == (finds_python == "exit 1")
    assert words in line


def test_set_up_ignores_cdpath(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere" / "dev").mkdir(parents=True)
    set_up(checkout, CDPATH=str(tmp_path / "elsewhere"), HOME=str(tmp_path))
    assert (checkout / "sync.txt").read_text() == ".venv \n"


def test_an_own_uv_is_a_command_of_the_environment(checkout: Path) -> None:
    (checkout / ".uv" / "bin").mkdir(parents=True)
    (checkout / "bin" / "uv").rename(checkout / ".uv" / "bin" / "uv")
    (checkout / "bin" / "uv").write_text("#!/bin/sh\nexit 1\n")  # hides one of the system
    (checkout / "bin" / "uv").chmod(0o755)
    set_up(checkout)
    assert (checkout / ".venv" / "bin" / "uv").resolve() == checkout / ".uv" / "bin" / "uv"
