"""Talk to a model in the browser, or from any program that speaks the OpenAI protocol.

python -m scripts.chat_web                    http://localhost:8000
python -m scripts.chat_web --source=sft --port=8080
NANOCHAT_WEB_PORT=8080 python -m scripts.chat_web

Every option may stand in the environment as NANOCHAT_WEB_ and its name; the command line wins.
"""

import logging
import sys
from dataclasses import dataclass
from typing import Annotated, Literal

from nanochat import checkpoint_manager
from nanochat.configurator import FolderName, at_least, between, parse, run, short
from nanochat.engine import Engine
from nanochat.runtime import api_key, options_from_environment, replicas
from nanochat.training import stage
from nanochat.web import http_server
from nanochat.web.openai_api import Defaults
from nanochat.web.server import create_app
from nanochat.web.service import Settings

logger = logging.getLogger(__name__)

ENVIRONMENT = "NANOCHAT_WEB_"  # before the name of an option


@dataclass(frozen=True)
class Options:
    """Talk to a model in the browser, or from any program that speaks the OpenAI protocol."""

    source: Annotated[Literal["latest", "base", "mid", "sft", "rl"], short("-i")] = "latest"
    """Stage whose model answers; latest is the furthest that there is."""
    model_tag: Annotated[str, FolderName()] = ""
    """Folder of the checkpoint; empty means the newest."""
    step: Annotated[int, at_least(0, besides=-1)] = -1
    """Step of the checkpoint; -1 means the newest."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets other machines in (then set a key as well)."""
    port: Annotated[int, between(0, 65535)] = 8000
    """Port to listen on; 0 means any that is free."""
    temperature: Annotated[float, between(0, 2)] = 0.0
    """Default of a request: 0 takes the most likely token, 1 draws as the model was trained."""
    top_k: Annotated[int, at_least(0)] = 50
    """Default of a request: only sample from the k most likely tokens; 0 means all."""
    max_tokens: Annotated[int, at_least(1)] = 512
    """Where a request names none: tokens of an answer at most."""
    num_engines: Annotated[int, at_least(0)] = 0
    """Copies of the model that answer side by side; 0 means one for each GPU, one without."""
    num_slots: Annotated[int, at_least(1)] = 32
    """Answers that each copy writes at once."""
    max_waiting: Annotated[int, at_least(0)] = 256
    """Answers that may wait for a slot of each copy; more are refused with 429."""
    deadline: Annotated[float, at_least(1)] = 300.0
    """Seconds that one request may take, its waiting included."""
    api_key: str = ""
    """Key that clients must show as a Bearer token; empty means NANOCHAT_API_KEY, or none."""
    cors_origins: str = ""
    """Other sites whose pages may ask, with commas between; empty means none."""
    device_type: str = ""
    """cuda, mps or cpu; empty means the fastest that is there."""


def main(argv: list[str] | None = None) -> None:
    """Take the port, load the model, serve until told to stop."""
    arguments = sys.argv[1:] if argv is None else argv
    options = parse(Options, [*options_from_environment(ENVIRONMENT), *arguments])
    with (
        stage.opened(options.device_type) as runtime,
        http_server.bind(options.host, options.port) as sock,
    ):
        source = checkpoint_manager.find_stage() if options.source == "latest" else options.source
        copies = [
            checkpoint_manager.load_model(source, one, options.model_tag, options.step)
            for one in replicas(runtime, options.num_engines)
        ]
        meta = copies[0][-1]
        settings = Settings(
            model_name=f"nanochat-{meta['settings']['model_tag']}-{source}",
            defaults=Defaults(options.temperature, options.top_k, options.max_tokens),
            api_key=options.api_key or api_key(),
            cors_origins=tuple(filter(None, options.cors_origins.split(","))),
            num_slots=options.num_slots,
            max_waiting=options.max_waiting,
            deadline_seconds=options.deadline,
        )
        host, port = sock.getsockname()[:2]
        logger.info("%s, step %d, on %s", settings.model_name, meta["step"], runtime.device)
        logger.info("open http://%s:%d in a browser; Ctrl-C ends", name_of(host), port)
        engines = [Engine(model, tokenizer) for model, tokenizer, _ in copies]
        http_server.serve(create_app(engines, settings), sock)


def name_of(host: str) -> str:
    """What a person types to get there."""
    return "localhost" if host in ("127.0.0.1", "::1", "0.0.0.0", "::") else host


if __name__ == "__main__":
    run(main)
