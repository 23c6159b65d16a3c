"""Chat with a model in the browser, or with any client of the OpenAI protocol.

python -m scripts.chat_web                    http://localhost:8000
python -m scripts.chat_web --source=sft --port=8080
NANOCHAT_WEB_PORT=8080 python -m scripts.chat_web

The environment variable NANOCHAT_WEB_<OPTION> sets an option; the command line overrides it.
"""

from dataclasses import dataclass
from typing import Annotated

from nanochat.configurator import at_least, between, parse, run_command
from scripts.options import InferenceOptions


@dataclass(frozen=True)
class Options(InferenceOptions):
    """Chat with a model in the browser, or with any client of the OpenAI protocol.

    temperature, top_k and max_tokens are defaults for requests that do not set them.
    """

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 accepts other machines (set --api_key, too)."""
    port: Annotated[int, between(0, 65535)] = 8000
    """Port to listen on; 0 means any free one."""
    num_engines: Annotated[int, at_least(0)] = 0
    """Copies of the model that answer in parallel; 0 means one per GPU, or one on the CPU."""
    num_slots: Annotated[int, at_least(1)] = 32
    """Answers that each copy generates at once."""
    max_waiting: Annotated[int, at_least(0)] = 256
    """Answers per copy that may wait for a slot; more are refused with status 429."""
    deadline: Annotated[float, at_least(1)] = 300.0
    """Maximum seconds per request, including the time in the queue."""
    api_key: str = ""
    """Bearer token that clients must send; empty means that of NANOCHAT_API_KEY, or none."""
    cors_origins: str = ""
    """Comma-separated origins of other sites that may send requests; empty means none."""


if __name__ == "__main__":
    run_command(Options)  # before the slow imports

import logging
import sys

from nanochat.engine import Sampling
from nanochat.runtime import api_key, options_from_environment, replicas
from nanochat.training import stage
from nanochat.web import http_server
from nanochat.web.inference_service import Settings
from nanochat.web.server import create_app
from scripts.inference import load_engines

logger = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if argv is None else argv
    options = parse(Options, [*options_from_environment("NANOCHAT_WEB_"), *arguments])
    with (
        stage.command_runtime(options.device_type) as runtime,
        http_server.bind(options.host, options.port) as listener,
    ):
        engines, meta = load_engines(options, replicas(runtime, options.num_engines))
        settings = Settings(
            model_name=f"nanochat-{meta['settings']['model_tag']}-{meta['stage']}",
            sampling=Sampling(options.temperature, options.top_k),
            max_tokens=options.max_tokens,
            api_key=options.api_key or api_key(),
            cors_origins=tuple(filter(None, options.cors_origins.split(","))),
            num_slots=options.num_slots,
            max_waiting=options.max_waiting,
            deadline_seconds=options.deadline,
        )
        host, port = listener.getsockname()[:2]
        if host in ("127.0.0.1", "::1", "0.0.0.0", "::"):  # what works in a browser here
            host = "localhost"
        logger.info("%s, step %d, on %s", settings.model_name, meta["step"], runtime.device)
        logger.info("open http://%s:%d in a browser; Ctrl-C stops the server", host, port)
        http_server.serve(create_app(engines, settings), listener)
