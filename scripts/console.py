"""Console scripts: the same commands as `python -m ...`, by a short name."""

from nanochat.configurator import run


def chat() -> None:
    """nanochat-chat: talk to a model in the terminal."""
    from scripts import chat_cli

    run(chat_cli.main)


def web() -> None:
    """nanochat-web: talk to a model in the browser."""
    from scripts import chat_web

    run(chat_web.main)


def report() -> None:
    """nanochat-report: render the report."""
    from nanochat import report

    run(report.main)
