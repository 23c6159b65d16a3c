"""What stands between the routes and the pool: settings, checks, and answers as they come."""

import asyncio
import hmac
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request as HttpRequest

from nanochat.engine import Engine, Request
from nanochat.inference.detokenizer import Finished, TextPiece, ToolCall
from nanochat.inference.sampling import TokenChoice
from nanochat.runtime import derive_seed
from nanochat.web.openai_api import (
    ApiError,
    ChatRequest,
    CompletionRequest,
    Defaults,
    sampling_of,
    seed_of,
)
from nanochat.web.pool import Pool
from nanochat.web.prometheus import Metrics
from nanochat.web.scheduler import Busy
from nanochat.web.worker import SHUTTING_DOWN, Failed, Job, Scores, Scoring, WorkerEvent

ALIAS = "nanochat"  # a name of the model that always holds
RETRY_AFTER_SECONDS = 2


@dataclass(frozen=True)
class Settings:
    """Of one server."""

    model_name: str
    defaults: Defaults = field(default_factory=Defaults)
    api_key: str = ""
    """What clients must show as a Bearer token; empty: nothing."""
    num_slots: int = 32
    """Answers that each engine writes at once."""
    max_waiting: int = 256
    """Answers that may wait for a slot of each engine; more are refused."""
    deadline_seconds: float = 300.0
    """For one request, its waiting included."""
    max_body_bytes: int = 256 * 1024
    cors_origins: tuple[str, ...] = ()
    """Sites whose pages may ask; none unless told so."""


class Service:
    """A pool of engines with one model, and what the routes ask of it."""

    def __init__(self, engines: Sequence[Engine], settings: Settings) -> None:
        self.settings = settings
        self.pool = Pool(engines, settings.num_slots, settings.max_waiting)
        self.metrics = Metrics(self.pool.figures)
        self.tokenizer = engines[0].tokenizer
        self.context = engines[0].model.config.sequence_len
        self.started = int(time.time())

    def require_api_key(self, request: HttpRequest) -> None:
        """Raises ApiError unless the key was shown, where one is wanted."""
        wanted = f"Bearer {self.settings.api_key}".encode()
        shown = request.headers.get("authorization", "").encode()
        if self.settings.api_key and not hmac.compare_digest(wanted, shown):
            message = "this server wants its API key as a Bearer token"
            headers = {"WWW-Authenticate": "Bearer"}
            raise ApiError(401, message, code="invalid_api_key", headers=headers)

    def refuse_other_model(self, name: str | None) -> None:
        """Raises ApiError when a model is asked for that is not here."""
        if name and name not in (ALIAS, self.settings.model_name):
            message = f"no model {name[:80]!r} here; there is {self.settings.model_name}"
            raise ApiError(404, message, param="model", code="model_not_found")

    def model_body(self) -> dict[str, Any]:
        """The model as the protocol lists it, with its context and the server's defaults."""
        defaults = self.settings.defaults
        return {
            "id": self.settings.model_name,
            "object": "model",
            "created": self.started,
            "owned_by": "nanochat",
            "context_length": self.context,
            "defaults": {
                "temperature": defaults.temperature,
                "top_k": defaults.top_k,
                "max_tokens": defaults.max_tokens,
            },
        }

    def health_body(self) -> dict[str, Any]:
        """Whether all engines work, some, or none, and how much they have to do."""
        num_alive, num_engines = self.pool.num_alive, len(self.pool.workers)
        some = "degraded" if num_alive else "down"
        return {
            "status": "ok" if num_alive == num_engines else some,
            "model": self.settings.model_name,
            "engines": num_alive,
            "waiting": self.pool.num_waiting,
            "running": self.pool.num_running,
        }

    def requests(
        self,
        asked: ChatRequest | CompletionRequest,
        prompts: Sequence[list[int]],
        max_tokens: int | None,
    ) -> list[Request]:
        """One for each choice, those of the first prompt first.

        Raises ApiError when a prompt and its answer pass the context.
        """
        sampling, stop = sampling_of(asked, self.settings.defaults), asked.stop_strings()
        seed, num_top_logprobs = seed_of(asked), asked.num_top_logprobs()
        requests = []
        for number, prompt in enumerate(prompts):
            limit = self._limit(asked, len(prompt), max_tokens)
            for choice in range(asked.n or 1):
                own = derive_seed(seed, number, choice)
                requests.append(Request(prompt, limit, sampling, own, stop, num_top_logprobs))
        return requests

    def _limit(
        self, asked: ChatRequest | CompletionRequest, num_prompt_tokens: int, wanted: int | None
    ) -> int:
        room = self.context - num_prompt_tokens
        if room < 1 or (wanted or 0) > room:
            raise ApiError(
                400,
                f"the model's context is {self.context} tokens; the prompt has {num_prompt_tokens}"
                f" and {wanted or 1} are to follow: shorten one of them",
                param="messages" if isinstance(asked, ChatRequest) else "prompt",
                code="context_length_exceeded",
            )
        return min(self.settings.defaults.max_tokens, room) if wanted is None else wanted

    def ask(self, asked: Sequence[Request | Scoring]) -> "Answers":
        """The answers, begun.

        Raises ApiError when too many wait already, or when they never would find room.
        """
        if len(asked) > self.pool.max_choices:
            message = f"{len(asked)} choices; this server has room for {self.pool.max_choices}"
            raise ApiError(400, message, param="n")
        answers = Answers(self, len(asked))
        try:
            answers.jobs = self.pool.submit(
                [(one, answers.listener(index)) for index, one in enumerate(asked)]
            )
        except Busy:
            is_open = self.pool.is_open
            self.metrics.refused.inc()
            raise ApiError(
                429 if is_open else 503,
                "the server is busy; try again in a moment" if is_open else SHUTTING_DOWN,
                code="queue_full" if is_open else "shutting_down",
                headers={"Retry-After": str(RETRY_AFTER_SECONDS)},
            ) from None
        return answers


@dataclass
class Said:
    """What one choice has to say at one time: text, a tool call, scores, or that it has ended."""

    index: int
    text: str = ""
    choices: list[TokenChoice | int] = field(default_factory=list)
    """Of the tokens of the text, where they are wanted; a bare number: nothing is known of it."""
    tool: ToolCall | None = None
    finished: Finished | None = None
    scores: list[TokenChoice] | None = None


class Answers:
    """What comes back for one request. Nothing is lost; what has not been read is merged."""

    def __init__(self, service: Service, num_choices: int) -> None:
        self.service, self.num_choices = service, num_choices
        self.jobs: list[Job] = []
        self._began = time.monotonic()
        loop = asyncio.get_running_loop()
        self._deadline = loop.time() + service.settings.deadline_seconds
        self._arrived = asyncio.Event()
        self._unread: list[Said | Failed] = []
        self._has_spoken = False

    def listener(self, index: int) -> Any:
        """Takes the events of one choice, in the thread of the asyncio loop."""

        def listen(events: list[WorkerEvent]) -> None:
            if not self._has_spoken:
                self._has_spoken = True
                self.service.metrics.first_token_seconds.observe(time.monotonic() - self._began)
            for event in events:
                self._take(index, event)
            self._arrived.set()

        return listen

    def _take(self, index: int, event: WorkerEvent) -> None:
        if isinstance(event, Failed):
            self._unread.append(event)
        elif isinstance(event, TextPiece):
            self._open_text(index).text += event.text
        elif isinstance(event, TokenChoice):
            self._open_text(index).choices.append(event)
        elif isinstance(event, ToolCall):
            self._unread.append(Said(index, tool=event))
        elif isinstance(event, Scores):
            self._unread.append(Said(index, scores=event.choices))
        else:
            self.service.metrics.count_answer(event)
            self._unread.append(Said(index, finished=event))

    def _open_text(self, index: int) -> Said:
        """What text of this choice is added to: its newest unread text, or a new one."""
        for said in reversed(self._unread):
            if isinstance(said, Said) and said.index == index:
                if said.tool is None:
                    return said
                break
        self._unread.append(Said(index))
        newest = self._unread[-1]
        assert isinstance(newest, Said)
        return newest

    async def __aiter__(self) -> AsyncIterator[Said]:
        """What is said, until every choice has ended. Raises ApiError when one fails or is late."""
        num_open = self.num_choices
        while num_open:
            try:
                async with asyncio.timeout_at(self._deadline):
                    await self._arrived.wait()
            except TimeoutError:
                raise ApiError(503, "the answer took too long", code="deadline_exceeded") from None
            self._arrived.clear()
            unread, self._unread = self._unread, []
            for said in unread:
                if isinstance(said, Failed):
                    status = 503 if said.reason == SHUTTING_DOWN else 500
                    raise ApiError(status, said.reason, code="engine_error")
                num_open -= said.finished is not None or said.scores is not None
                yield said

    def cancel(self) -> None:
        """End the work on what has not ended."""
        for job in self.jobs:
            job.cancel()
