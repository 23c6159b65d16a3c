"""Console scripts of an installation: short names for `python -m ...`, see pyproject.toml."""

# Imported only when called: nanochat-report need not wait for the web server's packages.
from nanochat.configurator import run


def chat() -> None:
    """nanochat-chat: chat with a model in the terminal."""
    from scripts import chat_cli

    run(chat_cli.main)


def web() -> None:
    """nanochat-web: chat with a model in the browser."""
    from scripts import chat_web

    run(chat_web.main)


def report() -> None:
    """nanochat-report: render the report."""
    from nanochat import report

    run(report.main)
