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

    models: str = "all"
    """Comma-separated stages that clients may choose beside --source: base, mid, sft, rl; all means
    those that have a checkpoint, none only --source. They are loaded when first asked for."""
    max_loaded_models: Annotated[int, at_least(1)] = 2
    """Models kept in memory at once; for another one, the least recently used one is unloaded."""
    host: str = "localhost"
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
    allowed_hosts: str = ""
    """Comma-separated names by which clients reach the server, beside localhost, IP addresses and
    this machine's name: that of a reverse proxy, *.example.com, or * for any."""
    trusted_proxies: str = ""
    """Comma-separated addresses of reverse proxies whose X-Forwarded-For is logged."""


if __name__ == "__main__":
    run_command(Options)  # before the slow imports

import logging
import re
import socket
import sys
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Literal

from nanochat import checkpoint_manager
from nanochat.engine import Engine, Sampling
from nanochat.errors import UserError
from nanochat.runtime import Runtime, api_key, options_from_environment, replicas
from nanochat.training import stage
from nanochat.web import http_server
from nanochat.web.inference_service import Settings
from nanochat.web.models import ModelRegistry, ModelSource
from nanochat.web.server import create_app
from scripts.inference import load_engines

logger = logging.getLogger(__name__)

Stage = Literal["base", "mid", "sft", "rl"]
STAGES: tuple[Stage, ...] = ("base", "mid", "sft", "rl")


def main(argv: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if argv is None else argv
    options = parse(Options, [*options_from_environment("NANOCHAT_WEB_"), *arguments])
    settings = Settings(
        sampling=Sampling(options.temperature, options.top_k),
        max_tokens=options.max_tokens,
        api_key=options.api_key or api_key(),
        cors_origins=origins(options.cors_origins),
        allowed_hosts=(*names(options.allowed_hosts), options.host, *machine_names()),
        num_slots=options.num_slots,
        max_waiting=options.max_waiting,
        deadline_seconds=options.deadline,
    )
    with stage.command_runtime(options.device_type) as runtime, ExitStack() as stack:
        listeners = http_server.bind(options.host, options.port)
        for listener in listeners:
            stack.enter_context(listener)
        models = ModelRegistry(
            model_sources(options, runtime),
            options.max_loaded_models, options.num_slots, options.max_waiting,
        )  # fmt: skip
        host, port = listeners[0].getsockname()[:2]
        if host in ("127.0.0.1", "::1", "0.0.0.0", "::"):  # what works in a browser here
            host = "localhost"
        logger.info("%s on %s", models.sources[0].name, runtime.device)
        logger.info("open http://%s:%d in a browser; Ctrl-C stops the server", host, port)
        app = create_app(models, settings)
        http_server.serve(app, listeners, names(options.trusted_proxies))


def names(text: str) -> tuple[str, ...]:
    """The parts of a comma-separated option."""
    return tuple(part for name in text.split(",") if (part := name.strip()))


def origins(text: str) -> tuple[str, ...]:
    """Origins as browsers send them. Raises UserError on what cannot be one."""
    result = tuple(name.rstrip("/").lower() for name in names(text))
    for origin in result:
        if not re.fullmatch(r"\*|[a-z][a-z0-9+.-]*://[^/?#]+", origin):
            raise UserError(
                f"--cors_origins: {origin!r} is no origin; expected https://example.com, or *"
            )
    return result


def machine_names() -> tuple[str, ...]:
    """Names of this machine in its own network."""
    name = socket.gethostname().lower()
    return name, f"{name}.local"


def model_sources(options: Options, runtime: Runtime) -> list[ModelSource]:
    """The model of --source and those of --models. Raises UserError on an unknown stage."""
    default = checkpoint_manager.find_stage() if options.source == "latest" else options.source
    chosen = {"all": STAGES, "none": ()}.get(options.models, names(options.models))
    if unknown := set(chosen) - set(STAGES):
        raise UserError(
            f"--models: no stage {min(unknown)!r}; expected {', '.join(STAGES)}, all or none"
        )
    sources = []
    for name in sorted(STAGES, key=lambda name: name != default):
        if name not in (default, *chosen):
            continue
        # A step is that of --source: other stages have steps of their own.
        one = replace(options, source=name, step=options.step if name == default else -1)
        try:
            meta = checkpoint_manager.read_meta(name, one.model_tag, one.step)
        except UserError:
            if name == default or options.models != "all":
                raise
            continue
        label = f"nanochat-{meta['settings']['model_tag']}-{name}"
        context = meta["model"]["sequence_len"]
        sources.append(ModelSource(label, name, context, partial(engines_of, one, runtime)))
    return sources


def engines_of(options: Options, runtime: Runtime) -> list[Engine]:
    """The engines of the model that the options name."""
    return load_engines(options, replicas(runtime, options.num_engines))[0]
