"""Console scripts of an installation: short names for `python -m ...`, see pyproject.toml."""

# Imported only when called: nanochat-report need not wait for the web server's packages.
from nanochat.configurator import run


def chat() -> None:
    from scripts import chat_cli

    run(chat_cli.main)


def web() -> None:
    from scripts import chat_web

    run(chat_web.main)


def report() -> None:
    from nanochat import report

    run(report.main)
