"""The architecture rules: ARCHITECTURE.md names the layer of each module, this enforces it."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from dev import import_graph

ROOT = Path(__file__).parents[1]
GRAPH = import_graph.module_graph()
PACKAGES = ("nanochat", "tasks", "scripts")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
PYTHON = [*SOURCES, *sorted((ROOT / "tests").rglob("*.py")), *sorted((ROOT / "dev").rglob("*.py"))]


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def name_of(path: Path) -> str:
    """nanochat/web/server.py is nanochat.web.server, a package's __init__.py the package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


@cache
def imported(path: Path) -> set[str]:
    """Every module that is imported anywhere in a file; `from a import b` gives a and a.b."""
    found: set[str] = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative imports hide where one is"
            assert node.module is not None
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def users_of(package: str, paths: list[Path] = SOURCES) -> set[str]:
    """Modules that import a package or a part of it."""
    return {
        name_of(path)
        for path in paths
        if any(name == package or name.startswith(package + ".") for name in imported(path))
    }


def attributes(path: Path) -> Iterator[tuple[str, int]]:
    """Dotted names that occur in a file, as ("os.environ", line)."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Attribute):
            yield ast.unparse(node), node.lineno


def test_every_module_is_in_the_layer_table_and_the_table_names_no_other() -> None:
    table = import_graph.layers()
    named = set()
    for module in GRAPH:
        import_graph.layer_of(module, table)  # raises KeyError
        named |= {import_graph.node_of(module), "/".join(module.split(".")[1:3])}
    assert set(table) <= named


def test_every_module_is_named_in_the_architecture_page() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    modules = [path for path in SOURCES if path.stem not in ("__init__", "__main__")]
    assert [str(path) for path in modules if f"`{path.name}`" not in page] == []


def test_every_file_and_module_named_in_the_docs_exists() -> None:
    """Files by any ending of their path, such as `web/server.py`; modules as in `python -m`."""
    files = [path.relative_to(ROOT).as_posix() for path in tracked_files()]
    for page in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        named = re.findall(r"`([\w./-]+\.(?:py|sh|rs|html|toml|md|txt))`", text)
        named += re.findall(r"`([\w./-]+/)`", text)
        named += re.findall(r"\]\(([\w./]+)", text)  # the targets of links
        paths = [f"/{name.strip('/')}/" for name in named]
        missing = {path for path in paths if not any(path in f"/{file}/" for file in files)}
        assert missing <= {"/report.md/", "/report.html/", "/replaced/"}, page  # written by runs
        modules = re.findall(r"(?:python -m|-m) ((?:nanochat|scripts|dev)[\w.]*)", text)
        modules += re.findall(r"`((?:nanochat|scripts)\.[a-z_.]+)`", text)
        assert [m for m in modules if not module_exists(m)] == [], page


def module_exists(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or path.is_dir()


def test_a_module_imports_only_from_lower_layers() -> None:
    """Within a layer, only from what its row lists before it; inside a package anything acyclic."""
    table = import_graph.layers()
    wrong = [
        f"{module} imports {other}"
        for module, imports in GRAPH.items()
        for other in imports
        if import_graph.node_of(module) != import_graph.node_of(other)
        and import_graph.layer_of(other, table) >= import_graph.layer_of(module, table)
    ]
    assert wrong == []


def test_there_is_no_import_cycle() -> None:
    assert import_graph.cycle(GRAPH) == []
    assert import_graph.cycle({"a": {"b"}, "b": {"a"}}) != []


def test_the_layers_are_read_from_the_page() -> None:
    table = import_graph.layers()
    assert table["errors"] < table["paths"] < table["runtime"] < table["gpt"]
    assert table["gpt"] < table["engine"] < table["training"] < table["web"]
    assert max(layer for layer, _ in table.values()) < 10


def test_only_scripts_import_scripts_and_nanochat_never_imports_tasks() -> None:
    assert {name for name in users_of("scripts") if not name.startswith("scripts")} == set()
    assert {name for name in users_of("tasks") if name.startswith("nanochat")} == set()


def test_tasks_import_only_the_common_module_of_their_own() -> None:
    for path in (ROOT / "tasks").glob("*.py"):
        own = {name for name in imported(path) if name.startswith("tasks.")}
        assert {name for name in own if not name.startswith("tasks.common")} == set(), path


@pytest.mark.parametrize(
    ("package", "homes"),
    [
        ("torch.distributed", {"nanochat.runtime", "nanochat.adamw"}),
        ("pyarrow", {"nanochat.data.shards"}),
        ("wandb", {"nanochat.metrics"}),
        ("huggingface_hub", {"nanochat.data.download", "nanochat.data.responses"}),
        ("rustbpe", {"nanochat.tokenizer"}),
        ("tiktoken", {"nanochat.data.tokenizer_formats"}),
        ("matplotlib", {"nanochat.report.figures"}),
        ("prompt_toolkit", {"scripts.chat_cli"}),
    ],
)
def test_each_of_these_libraries_has_one_home(package: str, homes: set[str]) -> None:
    assert users_of(package) <= homes
    if package == "torch.distributed":
        named = {name_of(p) for p in SOURCES for name, _ in attributes(p) if name == package}
        assert named <= homes


def test_the_web_framework_is_named_in_the_web_package_alone() -> None:
    for package in ("fastapi", "uvicorn", "starlette"):
        users = users_of(package)
        allowed = {name for name in users if name.startswith("nanochat.web")}
        assert users <= allowed | {"scripts.chat_web"}


def test_the_environment_is_read_in_paths_and_runtime_alone_and_never_on_import() -> None:
    reads = {
        (name_of(path), name)
        for path in SOURCES
        for name, _ in attributes(path)
        if name in ("os.environ", "os.getenv", "os.putenv", "os.environb")
    }
    # The sandbox empties its own.
    homes = {"nanochat.paths", "nanochat.runtime", "nanochat.sandbox.fork_server"}
    assert {module for module, _ in reads} == homes
    for path in SOURCES:
        assert not {"os.environ", "os.getenv"} & imported(path), path
        for node in tree_of(path).body:
            if not isinstance(node, ast.FunctionDef | ast.ClassDef):
                assert "os.environ" not in ast.unparse(node), f"{path}:{node.lineno}"


def test_nothing_is_pickled_and_nothing_is_evaluated() -> None:
    for module in ("pickle", "cPickle", "dill", "joblib", "shelve", "marshal"):
        assert users_of(module, PYTHON) == set()
    for path in SOURCES:
        for node in ast.walk(tree_of(path)):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            where = f"{path}:{node.lineno}"
            if name_of(path) != "nanochat.sandbox.worker":  # in a confined process
                assert called not in ("eval", "exec", "compile", "__import__"), where
            if called == "torch.load":
                assert "weights_only=True" in ast.unparse(node), where
            assert "allow_pickle=True" not in ast.unparse(node), where


def test_no_module_is_a_drawer_for_everything() -> None:
    drawers = {"utils", "util", "common", "helpers", "misc"}
    assert {p.stem for p in (ROOT / "nanochat").rglob("*.py")} & drawers == set()


def test_functions_have_at_most_60_lines_and_files_400() -> None:
    too_long = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {lines} lines"
        for path in SOURCES
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := (node.end_lineno or 0) - node.lineno + 1) > 60
    ]
    too_long += [str(p) for p in SOURCES if len(p.read_text("utf-8").splitlines()) > 400]
    assert too_long == []


def test_flat_modules_and_package_edges_stay_few() -> None:
    """More of them is no error in itself, but each has to replace another."""
    flat = [p for p in (ROOT / "nanochat").glob("*.py") if p.stem != "__init__"]
    assert len(flat) <= 27
    assert sum(map(len, import_graph.package_graph(GRAPH).values())) <= 100


def test_words_go_to_logging_and_print_is_for_commands() -> None:
    """Library modules do not print; a module with a `main` is a command and may."""
    allowed = {"nanochat.metrics", "nanochat.configurator"}  # progress and errors, on stderr
    for path in sorted((ROOT / "nanochat").rglob("*.py")):
        names = {n.name for n in tree_of(path).body if isinstance(n, ast.FunctionDef)}
        if "main" in names or name_of(path) in allowed:
            continue
        calls = [
            node.lineno
            for node in ast.walk(tree_of(path))
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "print"
        ]
        assert calls == [], path


IMPORT_EVERYTHING = """
import importlib, logging, os, signal, sys, threading

root, names = sys.argv[1], sys.argv[2:]
touched = []

class Argv(list):
    def _note(self):
        caller = sys._getframe(2).f_code.co_filename
        if caller.startswith(root + os.sep) and os.sep + ".venv" + os.sep not in caller:
            touched.append(caller)
    def __getitem__(self, key):
        self._note()
        return super().__getitem__(key)
    def __iter__(self):
        self._note()
        return super().__iter__()

import torch, fastapi  # what libraries do on import is not ours
sys.argv = Argv(["command", "--depht=4"])
before = dict(os.environ), list(logging.root.handlers), threading.active_count()
signals = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
threads = torch.get_num_threads()
for name in names:
    importlib.import_module(name)
assert touched == [], touched
assert (dict(os.environ), list(logging.root.handlers), threading.active_count()) == before
assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == signals
assert torch.get_num_threads() == threads
assert not torch.cuda.is_initialized() and not torch.distributed.is_initialized()
assert "matplotlib" not in sys.modules and "wandb" not in sys.modules
print("imported", len(names))
"""


@pytest.mark.slow
def test_importing_every_module_does_nothing(tmp_path: Path) -> None:
    # The copied file runs in transformers, which is imported there only.
    names = [name_of(path) for path in SOURCES if path.name != "modeling_nanochat.py"]
    environment = {k: v for k, v in os.environ.items() if k != "NANOCHAT_BASE_DIR"}
    environment |= {"HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    (tmp_path / "home").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_EVERYTHING, str(ROOT), *names],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == f"imported {len(names)}"
    assert done.stderr == ""
    assert not (tmp_path / "home" / ".cache" / "nanochat").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def tracked_files() -> list[Path]:
    command = ["git", "ls-files", "-z"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    names = [name for name in done.stdout.split("\0") if name]
    return [ROOT / name for name in names if (ROOT / name).is_file()]


def test_no_tracked_file_names_a_registry() -> None:
    """Where packages come from is the affair of the machine, not of the repository."""
    hosts = [b"pypi" + b".org", b"python" + b"hosted.org", b"crates" + b".io", b"npm" + b"js."]
    naming = [
        f"{path.relative_to(ROOT)} names {host.decode()}"
        for path in tracked_files()
        for host in hosts
        if host in path.read_bytes()
    ]
    assert naming == []


def test_shell_scripts_are_well_formed() -> None:
    scripts = [p for p in tracked_files() if p.suffix in (".sh", ".slurm")]
    scripts.append(ROOT / ".ci" / "run")
    for path in scripts:
        done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, ""), path
