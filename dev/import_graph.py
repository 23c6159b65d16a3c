"""Print the import graph of nanochat, tasks and scripts: modules, edges, layers, cycles.

    python -m dev.import_graph              counts, and the edges between packages by layer
    python -m dev.import_graph --modules    every module with what it imports

A flat module of `nanochat` is a node of its own, a package is one node. The layers are those of the
table in ARCHITECTURE.md; tests/test_architecture.py enforces them.
"""

import argparse
import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("nanochat", "tasks", "scripts")

Graph = dict[str, set[str]]


def module_name(path: Path) -> str:
    """nanochat/web/server.py is nanochat.web.server; an __init__.py is its package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def module_graph() -> Graph:
    """For each module the modules of this repository that it imports, anywhere in the file."""
    files = [path for name in PACKAGES for path in (ROOT / name).rglob("*.py")]
    paths = {module_name(path): path for path in files if path.stat().st_size}  # no empty __init__
    paths.pop("nanochat")  # which only checks Python's version
    return {
        name: {other for other in _imported(path) if other in paths and other != name}
        for name, path in sorted(paths.items())
    }


def _imported(path: Path) -> set[str]:
    """Modules named by import statements; `from a import b` names a.b and, if b is no module, a."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            submodules = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= submodules
            if any(not _is_module(name) for name in submodules):
                found.add(node.module)
    return found


def _is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def node_of(module: str) -> str:
    """The flat module or package that a module belongs to: nanochat.web.server -> web."""
    parts = module.split(".")
    return parts[1] if parts[0] == "nanochat" and len(parts) > 1 else parts[0]


def package_graph(modules: Graph) -> Graph:
    """The same graph with each package as one node."""
    graph: Graph = {}
    for name, imports in modules.items():
        node = node_of(name)
        graph.setdefault(node, set()).update({node_of(other) for other in imports} - {node})
    return graph


def layers() -> dict[str, tuple[int, int]]:
    """(layer, position in its row) of each name in ARCHITECTURE.md's layer table.

    Names are flat modules, packages, or `package/module` where a package spans layers.
    """
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    found: dict[str, tuple[int, int]] = {}
    for layer, names in re.findall(r"^\| (\d+) \| ([^|]+) \|", text, re.MULTILINE):
        for position, name in enumerate(re.findall(r"`([\w/]+)`", names)):
            assert name not in found, f"ARCHITECTURE.md names {name} twice"
            found[name] = int(layer), position
    return found


def layer_of(module: str, table: dict[str, tuple[int, int]]) -> tuple[int, int]:
    """Layer and position of a module; KeyError when the table does not name it."""
    parts = module.split(".")
    names = parts[1:] if parts[0] == "nanochat" else parts
    own = "/".join(names[:2])
    return table[own] if own in table else table[names[0]]


def cycle(graph: Graph) -> list[str]:
    """One cycle of the graph, or []."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--modules", action="store_true", help="list every module's imports")
    options = parser.parse_args()
    modules, table = module_graph(), layers()
    packages = package_graph(modules)
    flat = [name for name in modules if re.fullmatch(r"nanochat\.\w+", name)]
    flat = [name for name in flat if not (ROOT / "nanochat" / name.split(".")[1]).is_dir()]
    for name, imports in sorted(modules.items() if options.modules else packages.items()):
        print(f"{name:<24}  {' '.join(sorted(imports))}")
    print(f"modules: {len(modules)}, of them flat in nanochat: {len(flat)}")
    print(f"edges between modules: {sum(map(len, modules.values()))}")
    print(f"edges between packages: {sum(map(len, packages.values()))}")
    print(f"layers: {1 + max(layer for layer, _ in table.values())}")
    print(f"cycles: {' -> '.join(cycle(modules)) or 0}")


if __name__ == "__main__":
    main()
