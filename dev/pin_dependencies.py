"""Pin every package that `uv sync` resolves, as constraints in pyproject.toml.

    python dev/pin_dependencies.py            newest compatible versions
    python dev/pin_dependencies.py --keep     the versions in the current uv.lock

uv.lock is not in the repository because it contains the URL of the index that it came from; these
pins hold the same versions. Run the tests afterwards and commit pyproject.toml.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^constraint-dependencies = \[\n.*?^\]\n", re.MULTILINE | re.DOTALL)
EXPORT = ("--no-hashes", "--no-annotate", "--no-header", "--no-emit-project")


def with_pins(pyproject: str, pins: list[str]) -> str:
    """pyproject.toml's text with the block of constraints replaced."""
    lines = "".join(f'    "{pin}",\n' for pin in pins)
    text, count = BLOCK.subn(lambda _: f"constraint-dependencies = [\n{lines}]\n", pyproject)
    if count != 1:
        sys.exit("pyproject.toml needs exactly one block `constraint-dependencies = [ ... ]`")
    return text


def resolved(directory: Path) -> list[str]:
    """`name==version ; marker` lines of the uv.lock in a directory, for all extras and groups."""
    command = ["uv", "export", "--frozen", "--all-extras", "--all-groups", *EXPORT]
    done = subprocess.run(command, cwd=directory, check=True, capture_output=True, text=True)
    return [line for line in done.stdout.splitlines() if "==" in line]


def main() -> None:
    """Write the pins."""
    pyproject = ROOT / "pyproject.toml"
    with tempfile.TemporaryDirectory() as name:
        project = Path(name)  # resolve in a copy, so that a failure changes nothing
        if "--keep" in sys.argv:
            shutil.copy(ROOT / "uv.lock", project)
            shutil.copy(pyproject, project)
        else:
            (project / "pyproject.toml").write_text(with_pins(pyproject.read_text(), []))
            subprocess.run(["uv", "lock"], cwd=project, check=True)
        pins = resolved(project)
    pyproject.write_text(with_pins(pyproject.read_text(), pins))
    print(f"{len(pins)} pins in pyproject.toml")


if __name__ == "__main__":
    main()
