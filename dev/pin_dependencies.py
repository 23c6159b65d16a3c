"""Pin every package that `uv sync` resolves, as constraints in pyproject.toml.

    python dev/pin_dependencies.py            newest versions that fit
    python dev/pin_dependencies.py --keep     the versions of the present uv.lock

uv.lock is not kept in the repository because it names the index it was made with; these pins say
the same without it. Run it, run the tests, and commit pyproject.toml.
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
    """The text of pyproject.toml with its block of constraints replaced."""
    lines = "".join(f'    "{pin}",\n' for pin in pins)
    text, count = BLOCK.subn(lambda _: f"constraint-dependencies = [\n{lines}]\n", pyproject)
    if count != 1:
        sys.exit("pyproject.toml needs exactly one block `constraint-dependencies = [ ... ]`")
    return text


def resolved(directory: Path) -> list[str]:
    """`name==version ; marker` lines of the uv.lock there, all extras and groups."""
    command = ["uv", "export", "--frozen", "--all-extras", "--all-groups", *EXPORT]
    done = subprocess.run(command, cwd=directory, check=True, capture_output=True, text=True)
    return [line for line in done.stdout.splitlines() if "==" in line]


def main() -> None:
    """Write the pins."""
    pyproject = ROOT / "pyproject.toml"
    with tempfile.TemporaryDirectory() as name:
        trial = Path(name)
        if "--keep" in sys.argv:
            shutil.copy(ROOT / "uv.lock", trial)
            shutil.copy(pyproject, trial)
        else:
            (trial / "pyproject.toml").write_text(with_pins(pyproject.read_text(), []))
            subprocess.run(["uv", "lock"], cwd=trial, check=True)
        pins = resolved(trial)
    pyproject.write_text(with_pins(pyproject.read_text(), pins))
    print(f"{len(pins)} pins in pyproject.toml")


if __name__ == "__main__":
    main()
