"""Talk to a model in the browser, or from any program that speaks the OpenAI protocol.

python -m scripts.chat_web                    http://localhost:8000
python -m scripts.chat_web --source=sft --port=8080
"""

import logging
from dataclasses import dataclass
from typing import Annotated, Literal

from nanochat import checkpoint_manager, stage
from nanochat.configurator import parse, run, short
from nanochat.engine import Engine
from nanochat.errors import UserError
from nanochat.web import listen
from nanochat.web.openai_api import Defaults
from nanochat.web.server import Settings, create_app

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """Talk to a model in the browser, or from any program that speaks the OpenAI protocol."""

    source: Annotated[Literal["latest", "base", "mid", "sft", "rl"], short("-i")] = "latest"
    """Stage whose model answers; latest is the furthest that there is."""
    model_tag: str = ""
    """Folder of the checkpoint; empty means the newest."""
    step: int = -1
    """Step of the checkpoint; -1 means the newest."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets other machines in (then set a key as well)."""
    port: int = 8000
    """Port to listen on; 0 means any that is free."""
    temperature: float = 0.0
    """Where a request names none: 0 takes the likeliest token, 1 draws as the model was trained."""
    top_k: int = 50
    """Where a request names none: likeliest tokens that are drawn from; 0 means all."""
    max_tokens: int = 512
    """Where a request names none: tokens of an answer at most."""
    max_waiting: int = 64
    """Answers that may wait for the engine; more are refused with 429."""
    deadline: float = 300.0
    """Seconds that one request may take, its waiting included."""
    api_key: str = ""
    """Key that clients must show as a Bearer token; empty means none."""
    device_type: str = ""
    """cuda, mps or cpu; empty means the fastest that is there."""


def main(argv: list[str] | None = None) -> None:
    """Take the port, load the model, serve until told to stop."""
    options = parse(Options, argv)
    refuse_nonsense(options)
    with (
        stage.opened(options.device_type) as place,
        listen.bind(options.host, options.port) as sock,
    ):
        source = checkpoint_manager.find_stage() if options.source == "latest" else options.source
        step = None if options.step == -1 else options.step
        tag = options.model_tag or None
        model, tokenizer, meta = checkpoint_manager.load_model(source, place, tag, step)
        settings = Settings(
            model_name=f"nanochat-{meta['settings']['model_tag']}-{source}",
            defaults=Defaults(options.temperature, options.top_k, options.max_tokens),
            api_key=options.api_key,
            max_waiting=options.max_waiting,
            deadline_seconds=options.deadline,
        )
        host, port = sock.getsockname()[:2]
        logger.info("%s, step %d, on %s", settings.model_name, meta["step"], place.device)
        logger.info("open http://%s:%d in a browser; Ctrl-C ends", name_of(host), port)
        listen.serve(create_app(Engine(model, tokenizer), settings), sock)


def refuse_nonsense(options: Options) -> None:
    """Raises UserError on a number out of its bounds."""
    bounds = {
        "port": (0, 65535),
        "temperature": (0, 2),
        "top_k": (0, None),
        "max_tokens": (1, None),
        "max_waiting": (1, None),
        "deadline": (1, None),
    }
    for name, (least, most) in bounds.items():
        value = getattr(options, name)
        if value < least or (most is not None and value > most):
            wanted = f"{least} or more" if most is None else f"{least} to {most}"
            raise UserError(f"--{name}={value} must be {wanted}")


def name_of(host: str) -> str:
    """What a person types to get there."""
    return "localhost" if host in ("127.0.0.1", "::1", "0.0.0.0", "::") else host


if __name__ == "__main__":
    run(main)
