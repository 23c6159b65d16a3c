"""Console scripts of an installation: short names for `python -m ...`, see pyproject.toml."""

import runpy


def chat() -> None:
    runpy.run_module("scripts.chat_cli", run_name="__main__", alter_sys=True)


def web() -> None:
    runpy.run_module("scripts.chat_web", run_name="__main__", alter_sys=True)


def report() -> None:
    runpy.run_module("nanochat.report", run_name="__main__", alter_sys=True)
