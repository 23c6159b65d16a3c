"""What a wheel installs: one package, whose commands and messages make sense without a checkout."""

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from dev import build_backend
from nanochat import primer
from tests.test_command_line import COMMANDS

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PIPELINE = """
dataset --source=primer -n 1
tok-train --max_chars=500000 --vocab_size=1024
base-train --depth=1 --head_dim=32 --max_seq_len=256 --total_batch_size=1024 --num_iterations=4
chat-eval -i base --primer_problems=1 --max_new_tokens=4
report generate
"""
IMPORT_ALL = """
import importlib, pkgutil, nanochat
for module in pkgutil.walk_packages(nanochat.__path__, "nanochat."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a wheel."""
    folder = tmp_path_factory.mktemp("tree")
    build_backend.copy_tree(folder)
    return folder


def test_module_names_and_commands_are_those_of_an_installation() -> None:
    for before, after in (
        ("from tasks.gsm8k import GSM8K", "from nanochat.tasks.gsm8k import GSM8K"),
        ("from scripts import training", "from nanochat.scripts import training"),
        ('"scripts.console:chat"', '"nanochat.scripts.console:chat"'),
        ("torchrun -m scripts.chat_sft", "torchrun -m nanochat.scripts.chat_sft"),
        ("run python -m scripts.chat_sft first", "run nanochat-chat-sft first"),
        ("python -m nanochat.dataset -n 8", "nanochat-dataset -n 8"),
        ("run bash speedrun.sh, or python -m scripts.base_train", "run nanochat-base-train"),
        ("uv sync --extra tracker", "pip install wandb"),
        ("run bash dev/setup.sh once", f"run pip install {PROJECT['name']} once"),
        *[(text, text) for text in ("tasks.append(x)", "options.tasks.arc", "scripts/options.py")],
    ):
        assert build_backend.installed_text(before) == after


def test_every_command_has_a_console_script(tmp_path: Path) -> None:
    scripts = (ROOT / "scripts").glob("*.py")
    names = {path.stem for path in scripts if '"__main__":' in path.read_text(encoding="utf-8")}
    names |= {"dataset", "report"}
    assert {command.split(".")[1] for command in COMMANDS} <= names
    expected = {name: f"scripts.console:{name}" for name in names | {"chat", "web"}}
    assert PROJECT["scripts"] == {
        f"nanochat-{name.replace('_', '-')}": target for name, target in expected.items()
    }
    for name in ("nanochat-web", "nanochat-tok-train", "nanochat-report"):  # as pip writes them
        module, function = PROJECT["scripts"][name].split(":")
        (tmp_path / name).write_text(f"from {module} import {function}\n{function}()\n")
        done = subprocess.run(
            [sys.executable, tmp_path / name, "--help"],
            cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.stdout.startswith(f"usage: {name} [CONFIG_FILE]"), done.stderr


def test_a_wheel_imports_and_names_only_what_it_has(tree: Path) -> None:
    pages = [path for path in tree.glob("nanochat/**/*") if path.suffix in (".py", ".html", ".md")]
    assert len(pages) > 100
    for path in pages:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"-m (scripts|tasks)\.|uv sync|speedrun.sh,? or|setup.sh", text), path
        named = re.findall(r"\bnanochat-[a-z]+(?:-[a-z]+)*\b(?=[ \"`])", text)
        assert set(named) <= PROJECT["scripts"].keys(), path
        if path.suffix == ".py":
            for node in ast.walk(ast.parse(text)):
                modules = [node.module] if isinstance(node, ast.ImportFrom) else []
                modules += [a.name for a in node.names] if isinstance(node, ast.Import) else []
                assert not {name.split(".")[0] for name in modules if name} & {"scripts", "tasks"}


def test_the_primer_of_a_wheel_makes_the_same_text(tree: Path) -> None:
    file = tree / "nanochat" / "primer" / "__init__.py"
    spec = importlib.util.spec_from_file_location("nanochat.primer", file)
    assert spec is not None and spec.loader is not None
    installed = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(installed)
    assert installed.__file__ != primer.__file__
    assert installed.fingerprint() == primer.fingerprint()


# ---- the wheel itself


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, cargo_home = tmp_path_factory.mktemp("wheel"), Path.home() / ".cargo" / "bin"
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"], str(cargo_home)])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT / "dev")}
    cargo = shutil.which("cargo", path=path)
    if cargo is None:
        pytest.skip("building a wheel needs cargo")
    fetch = [cargo, "fetch", "--manifest-path", str(ROOT / "rustbpe" / "Cargo.toml")]
    if subprocess.run(fetch, capture_output=True).returncode != 0:
        pytest.skip("the crates that rustbpe needs are not here and cannot be downloaded")
    program = (
        "import build_backend, sys\n"
        "build_backend.prepare_metadata_for_build_wheel(sys.argv[1])\n"
        "build_backend.build_wheel(sys.argv[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, folder],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    [file] = folder.glob("*.whl")
    return file


@pytest.mark.slow
def test_a_wheel_has_no_other_package_than_nanochat_and_the_tokenizer(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
        [entry_points] = [name for name in names if name.endswith("/entry_points.txt")]
        written = file.read(entry_points).decode()
    packages = {name.split("/")[0] for name in names}
    assert {name for name in packages if not name.endswith(".dist-info")} == {"nanochat", "rustbpe"}
    assert "nanochat/web/page/ui.html" in names and "nanochat/report/page.html" in names
    [prepared] = wheel.parent.glob("*.dist-info/entry_points.txt")
    assert prepared.read_text(encoding="utf-8") == written
    assert written.count("=nanochat.scripts.console:") == len(PROJECT["scripts"])


@pytest.mark.slow
def test_an_installed_wheel_trains_a_model_in_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    venv, empty = tmp_path / "venv", tmp_path / "empty"
    empty.mkdir()
    for arguments in (
        ["venv", "--without-pip", venv],
        ["pip", "--python", venv / "bin" / "python", "install", "--no-deps", "--no-index", wheel],
    ):
        subprocess.run([sys.executable, "-m", *arguments], check=True, capture_output=True)
    # The packages that nanochat needs, without the editable nanochat beside them.
    [site] = venv.glob("lib/*/site-packages")
    packages = importlib.util.find_spec("torch")
    assert packages is not None and packages.origin is not None
    (site / "packages.pth").write_text(f"{Path(packages.origin).parents[1]}\n")
    environment = {**os.environ, "NANOCHAT_BASE_DIR": str(tmp_path / "base")}

    def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(venv / "bin" / name), *arguments]
        return subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True)

    for package in ("scripts", "tasks"):
        assert run("python", "-c", f"import {package}").returncode == 1
    done = run("python", "-c", IMPORT_ALL)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    done = run("nanochat-chat", "-p", "Hello")
    assert done.stderr == f"error: no model in {tmp_path / 'base'}; run nanochat-base-train\n"
    for line in PIPELINE.strip().splitlines():
        name, *arguments = line.split()
        done = run(f"nanochat-{name}", *arguments)
        assert done.returncode == 0, f"{line}: {done.stderr[-3000:]}"
    report = (tmp_path / "base" / "report" / "report.md").read_text(encoding="utf-8")
    assert "nanochat-chat-web" in report and "commit" not in report
    done = run("nanochat-chat-cli", "-p", "Who are you?", "--max_tokens=8")
    assert done.returncode == 0 and done.stdout, done.stderr
