"""The build backend (PEP 517): maturin, but wheels have `scripts` and `tasks` inside of `nanochat`.

In a checkout both are top-level packages, for short commands. Installed, these names would collide
with those of other projects. So a wheel is built from a copy of the checkout in which they are
`nanochat.scripts` and `nanochat.tasks`, and messages name the commands of an installation. Source
distributions and editable installations have the layout of the checkout.

    uv build                                                  the sdist and the wheel, in dist/
    MATURIN_PEP517_ARGS="--features abi3" uv build --wheel    a wheel for any Python from 3.11 on
"""

import contextlib
import re
import shutil
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import maturin
from maturin import (
    build_editable,
    build_sdist,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
    prepare_metadata_for_build_editable,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

ROOT = Path(__file__).parents[1]
MOVED = ("scripts", "tasks")
Config = Mapping[str, Any] | None


def build_wheel(
    wheel_directory: str, config_settings: Config = None, metadata_directory: str | None = None
) -> str:
    folder = str(Path(wheel_directory).absolute())
    with _wheel_tree():
        return str(maturin.build_wheel(folder, config_settings, metadata_directory))


def prepare_metadata_for_build_wheel(
    metadata_directory: str, config_settings: Config = None
) -> str:
    folder = str(Path(metadata_directory).absolute())
    with _wheel_tree():
        return str(maturin.prepare_metadata_for_build_wheel(folder, config_settings))


@contextlib.contextmanager
def _wheel_tree() -> Iterator[None]:
    """A temporary folder with the layout of a wheel, as the current directory."""
    with tempfile.TemporaryDirectory() as name:
        copy_tree(Path(name))
        with contextlib.chdir(name):
            yield


def copy_tree(target: Path) -> None:
    """Copy what a wheel contains to `target`, as `installed_text` has it."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "nanochat", target / "nanochat", ignore=ignored)
    for package in MOVED:
        shutil.copytree(ROOT / package, target / "nanochat" / package, ignore=ignored)
    for path in target.rglob("*.py"):
        if path.parent.name != "primer":  # a hash of its files is saved with the text they make
            path.write_text(installed_text(path.read_text(encoding="utf-8")), encoding="utf-8")
    for name in ("README.md", "LICENSE"):
        shutil.copy(ROOT / name, target)
    (target / "rustbpe").mkdir()
    (target / "rustbpe" / "__init__.py").write_text("from rustbpe.rustbpe import *\n")
    shutil.copy(ROOT / "rustbpe" / "__init__.pyi", target / "rustbpe")
    # The crate is not copied, so that cargo finds what it has compiled before.
    crate = (ROOT / "rustbpe" / "Cargo.toml").as_posix()
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    text = installed_text(text).replace('"rustbpe/Cargo.toml"', f'"{crate}"', 1)
    (target / "pyproject.toml").write_text(text, encoding="utf-8")


def installed_text(text: str) -> str:
    """A file of the checkout with the module names and the commands of an installation."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    modules = [path.stem for name in MOVED for path in (ROOT / name).glob("[a-z]*.py")]
    text = text.replace("bash speedrun.sh, or ", "").replace(".venv/bin/python", "python")
    text = text.replace("bash dev/setup.sh", f"pip install {project['name']}")
    text = re.sub(
        r"uv sync --extra (\w+)", lambda match: f"pip install {' '.join(extras[match[1]])}", text
    )
    text = re.sub(
        r"python -m (?:nanochat|scripts)\.(\w+)",
        lambda match: "nanochat-" + match[1].replace("_", "-"),
        text,
    )
    text = re.sub(rf"(?m)^(\s*from )(?=({'|'.join(MOVED)}) import )", r"\1nanochat.", text)
    # Names of modules only, not `tasks.append` or `options.tasks`.
    module = rf"(?<![\w./])({'|'.join(MOVED)})\.(?=({'|'.join(modules)})\b)"
    return re.sub(module, r"nanochat.\1.", text)
