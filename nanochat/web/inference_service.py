"""Between the routes and the engines: checks, engine requests, and their events as they arrive."""

import asyncio
import hmac
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import Request as HttpRequest

from nanochat.engine import Engine, Request
from nanochat.inference.detokenizer import Finished, TextPiece
from nanochat.inference.sampling import Sampling
from nanochat.runtime import derive_seed
from nanochat.web.openai_api import (
    ApiError,
    ChatRequest,
    CompletionRequest,
)
from nanochat.web.prometheus import Metrics
from nanochat.web.scheduler import Busy
from nanochat.web.worker import SHUTTING_DOWN, EnginePool, Failed, WorkerEvent

MODEL_ALIAS = "nanochat"  # always accepted, so that scripts survive a new checkpoint
RETRY_AFTER_SECONDS = 2  # about the time of a short answer
DEFAULT_SAMPLING = Sampling(temperature=0.0, top_k=50)


@dataclass(frozen=True)
class Settings:
    model_name: str
    sampling: Sampling = DEFAULT_SAMPLING  # for fields that a request leaves out
    max_tokens: int = 512  # of an answer, where a request sets none
    api_key: str = ""  # Bearer token that clients must send; empty: none
    num_slots: int = 32  # answers that each engine generates at once
    max_waiting: int = 256  # answers per engine that may wait for a slot; more are refused
    deadline_seconds: float = 300.0  # for one request, queueing included
    max_body_bytes: int = 256 * 1024  # far more than a context of text
    cors_origins: tuple[str, ...] = ()  # other sites whose pages may send requests


class InferenceService:
    def __init__(self, engines: Sequence[Engine], settings: Settings) -> None:
        self.settings = settings
        self.pool = EnginePool(engines, settings.num_slots, settings.max_waiting)
        self.metrics = Metrics(self.pool.figures)
        self.tokenizer = engines[0].tokenizer
        self.context = engines[0].model.config.sequence_len
        self.start_time = int(time.time())

    def require_api_key(self, request: HttpRequest) -> None:
        """Raises ApiError unless the request has the server's key, if there is one."""
        expected = f"Bearer {self.settings.api_key}".encode()
        received = request.headers.get("authorization", "").encode()
        # compare_digest takes the same time wherever the first wrong byte is.
        if self.settings.api_key and not hmac.compare_digest(expected, received):
            message = "this server requires its API key as a Bearer token"
            headers = {"WWW-Authenticate": "Bearer"}
            raise ApiError(401, message, code="invalid_api_key", headers=headers)

    def require_model(self, name: str | None) -> None:
        """Raises ApiError when a request names another model."""
        if name and name not in (MODEL_ALIAS, self.settings.model_name):
            message = f"no model {name[:80]!r}; this server has {self.settings.model_name}"
            raise ApiError(404, message, param="model", code="model_not_found")

    def model_body(self) -> dict[str, Any]:
        """The model as the protocol lists it, plus its context length and the defaults."""
        return {
            "id": self.settings.model_name,
            "object": "model",
            "created": self.start_time,
            "owned_by": "nanochat",
            "context_length": self.context,
            "defaults": {
                "temperature": self.settings.sampling.temperature,
                "top_k": self.settings.sampling.top_k,
                "max_tokens": self.settings.max_tokens,
            },
        }

    def health_body(self) -> dict[str, Any]:
        """Status ("ok", "degraded" without some engines, "down" without all) and load."""
        num_alive, figures = self.pool.num_alive, self.pool.figures()
        partial_status = "degraded" if num_alive else "down"
        return {
            "status": "ok" if num_alive == len(self.pool.workers) else partial_status,
            "model": self.settings.model_name,
            "engines": num_alive,
            "waiting": figures["nanochat_waiting"],
            "running": figures["nanochat_running"],
        }

    def build_requests(
        self,
        body: ChatRequest | CompletionRequest,
        prompts: Sequence[list[int]],
        max_tokens: int | None,
        score_prompt: bool = False,
    ) -> list[Request]:
        """One request per choice, those of the first prompt first.

        Raises ApiError when a prompt with its answer exceeds the context.
        """
        sampling = body.sampling(self.settings.sampling)
        seed = secrets.randbits(63) if body.seed is None else body.seed
        stop, num_top_logprobs = body.stop_strings(), body.num_top_logprobs()
        requests = []
        for number, prompt in enumerate(prompts):
            room = self.context - len(prompt)
            if room < 1 or (max_tokens or 0) > room:
                raise ApiError(
                    400,
                    f"the model's context is {self.context} tokens; the prompt has {len(prompt)}"
                    f" and the answer up to {max_tokens or 1}: shorten one of them",
                    param="messages" if isinstance(body, ChatRequest) else "prompt",
                    code="context_length_exceeded",
                )
            limit = min(self.settings.max_tokens, room) if max_tokens is None else max_tokens
            for choice in range(body.n or 1):
                # One seed must not give n equal answers, and the same seed must repeat all n.
                choice_seed = derive_seed(seed, number, choice)
                options = sampling, choice_seed, stop, num_top_logprobs, score_prompt
                requests.append(Request(prompt, limit, *options))
        return requests

    def submit(self, requests: Sequence[Request]) -> "AnswerEvents":
        """Queue the requests. Raises ApiError when there is no room for them, now or ever."""
        max_choices = self.settings.num_slots + self.settings.max_waiting  # on an idle worker
        if len(requests) > max_choices:
            message = f"{len(requests)} choices; this server has room for {max_choices}"
            raise ApiError(400, message, param="n")
        answer = AnswerEvents(len(requests), self.metrics, self.settings.deadline_seconds)
        try:
            answer.cancel = self.pool.submit(requests, answer.add)
        except Busy:
            is_open = self.pool.is_open
            self.metrics.refused.inc()
            raise ApiError(
                429 if is_open else 503,
                "the server is busy; try again in a moment" if is_open else SHUTTING_DOWN,
                code="queue_full" if is_open else "shutting_down",
                headers={"Retry-After": str(RETRY_AFTER_SECONDS)},
            ) from None
        return answer


class AnswerEvents:
    """(index, event) of all choices of one HTTP request, as an asynchronous iterator.

    Lives in the thread of the event loop. For a slow client, unread text is merged and not dropped.
    """

    def __init__(self, num_choices: int, metrics: Metrics, deadline_seconds: float) -> None:
        self.num_choices, self.metrics = num_choices, metrics
        self.num_tokens = 0  # generated by the choices that have finished
        self.cancel: Callable[[], None] = lambda: None  # stops what has not finished
        self._start = time.monotonic()
        self._deadline = asyncio.get_running_loop().time() + deadline_seconds
        self._has_new = asyncio.Event()
        self._unread: list[tuple[int, WorkerEvent]] = []
        self._has_first_token = False

    def add(self, index: int, events: list[WorkerEvent]) -> None:
        if not self._has_first_token:
            self._has_first_token = True
            self.metrics.first_token_seconds.observe(time.monotonic() - self._start)
        for event in events:
            if isinstance(event, Finished):
                self.metrics.count_answer(event)
                self.num_tokens += event.num_tokens
            if not (isinstance(event, TextPiece) and self._merge(index, event)):
                self._unread.append((index, event))
        self._has_new.set()

    def _merge(self, index: int, new: TextPiece) -> bool:
        """Append to this choice's newest unread event, if that is text."""
        places = [i for i, (other, _) in enumerate(self._unread) if other == index]
        newest = self._unread[places[-1]][1] if places else None
        if not isinstance(newest, TextPiece):
            return False
        merged = TextPiece(newest.text + new.text, newest.logprobs + new.logprobs)
        self._unread[places[-1]] = index, merged
        return True

    async def __aiter__(self) -> AsyncIterator[tuple[int, WorkerEvent]]:
        """Events until every choice has ended. Raises ApiError when one fails or is late."""
        num_open = self.num_choices
        while num_open:
            try:
                async with asyncio.timeout_at(self._deadline):
                    await self._has_new.wait()
            except TimeoutError:
                raise ApiError(503, "the answer took too long", code="deadline_exceeded") from None
            self._has_new.clear()
            unread, self._unread = self._unread, []
            for index, event in unread:
                if isinstance(event, Failed):
                    status = 503 if event.reason == SHUTTING_DOWN else 500
                    raise ApiError(status, event.reason, code="engine_error")
                num_open -= isinstance(event, Finished)
                yield index, event
