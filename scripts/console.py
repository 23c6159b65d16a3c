"""Console scripts of an installation: `nanochat-base-train` runs `base_train`, and so on."""

import runpy
from collections.abc import Callable

OTHER_MODULES = {
    "chat": f"{__package__}.chat_cli",
    "dataset": "nanochat.dataset",
    "report": "nanochat.report",
    "web": f"{__package__}.chat_web",
}


def __getattr__(name: str) -> Callable[[], None]:
    """A function that runs the command of this name as `python -m` does."""
    if name.startswith("_"):
        raise AttributeError(name)
    module = OTHER_MODULES.get(name, f"{__package__}.{name}")

    def run() -> None:
        runpy.run_module(module, run_name="__main__", alter_sys=True)

    return run
