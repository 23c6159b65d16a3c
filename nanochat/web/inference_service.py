"""Between the routes and the engines: checks, engine requests, and their events as they arrive."""

import asyncio
import hmac
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Request as HttpRequest

from nanochat.engine import Request, derive_seed
from nanochat.inference.detokenizer import Finished, TextPiece
from nanochat.inference.sampling import Sampling
from nanochat.web.models import RETRY_AFTER_SECONDS, ModelRegistry, ModelSource
from nanochat.web.openai_api import ApiError, ChatRequest, CompletionRequest
from nanochat.web.prometheus import Metrics
from nanochat.web.scheduler import Busy
from nanochat.web.worker import SHUTTING_DOWN, EnginePool, Failed, WorkerEvent

Result = TypeVar("Result")

NUM_THREADS = 2  # for tokenization and Markdown
DEFAULT_SAMPLING = Sampling(temperature=0.0, top_k=50)


@dataclass(frozen=True)
class Settings:
    sampling: Sampling = DEFAULT_SAMPLING  # for fields that a request leaves out
    max_tokens: int = 512  # of an answer, where a request sets none
    api_key: str = ""  # Bearer token that clients must send; empty: none
    num_slots: int = 32  # answers that each engine generates at once
    max_waiting: int = 256  # answers per engine that may wait for a slot; more are refused
    deadline_seconds: float = 300.0  # for one request, queueing included
    max_body_bytes: int = 256 * 1024  # far more than a context of text
    cors_origins: tuple[str, ...] = ()  # other sites whose pages may send requests
    allowed_hosts: tuple[str, ...] = ()  # names of this server beside localhost and IP addresses


class InferenceService:
    def __init__(self, models: ModelRegistry, settings: Settings) -> None:
        self.models, self.settings = models, settings
        self.metrics = Metrics(models.figures)
        self.start_time = int(time.time())
        # Python code of requests runs here and not in the event loop; with more threads, the event
        # loop would wait longer for the GIL.
        self._threads = ThreadPoolExecutor(NUM_THREADS, "request")

    async def in_thread(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Call a function that takes milliseconds, while the event loop serves others."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)

    def require_api_key(self, request: HttpRequest) -> None:
        """Raises ApiError unless the request has the server's key, if there is one."""
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        received = key.strip().encode() if scheme.lower() == "bearer" else b""
        # compare_digest takes the same time wherever the first wrong byte is.
        expected = self.settings.api_key.encode()
        if expected and not hmac.compare_digest(expected, received):
            message = "this server requires its API key as a Bearer token"
            headers = {"WWW-Authenticate": "Bearer"}
            raise ApiError(401, message, code="invalid_api_key", headers=headers)

    def model_body(self, source: ModelSource) -> dict[str, Any]:
        """A model as the protocol lists it, plus its stage, context length and the defaults."""
        return {
            "id": source.name,
            "object": "model",
            "created": self.start_time,
            "owned_by": "nanochat",
            "stage": source.stage,
            "loaded": self.models.is_loaded(source),
            "context_length": source.context,
            "defaults": {
                "temperature": self.settings.sampling.temperature,
                "top_k": self.settings.sampling.top_k,
                "top_p": self.settings.sampling.top_p,
                "max_tokens": self.settings.max_tokens,
            },
        }

    def health_body(self) -> dict[str, Any]:
        """Status ("ok", "degraded" without some engines, "down" without all) and load."""
        pools, figures = self.models.pools, self.models.figures()
        num_alive, num_engines = (
            sum(pool.num_alive for pool in pools),
            sum(len(pool.workers) for pool in pools),
        )
        partial_status = "degraded" if num_alive else "down"
        return {
            "status": "ok" if num_alive == num_engines else partial_status,
            "model": self.models.sources[0].name,
            "engines": num_alive,
            "waiting": figures["nanochat_waiting"],
            "running": figures["nanochat_running"],
        }

    def build_requests(
        self,
        body: ChatRequest | CompletionRequest,
        prompts: Sequence[list[int]],
        max_tokens: int | None,
        context: int,
        score_prompt: bool = False,
    ) -> list[Request]:
        """One request per choice, those of the first prompt first.

        An answer is at most what the context leaves. Raises ApiError when that is nothing.
        """
        sampling = body.sampling(self.settings.sampling)
        seed = secrets.randbits(63) if body.seed is None else body.seed
        stop, num_top_logprobs = body.stop_strings(), body.num_top_logprobs()
        requests = []
        for number, prompt in enumerate(prompts):
            room = context - len(prompt)
            if room < (max_tokens != 0):  # nothing is generated to score a prompt
                raise ApiError(
                    400,
                    f"the model's context is {context} tokens; the prompt has {len(prompt)}: "
                    "shorten it",
                    param="messages" if isinstance(body, ChatRequest) else "prompt",
                    code="context_length_exceeded",
                )
            limit = min(self.settings.max_tokens if max_tokens is None else max_tokens, room)
            for choice in range(body.n or 1):
                # One seed must not give n equal answers, and the same seed must repeat all n.
                choice_seed = derive_seed(seed, number, choice)
                options = sampling, choice_seed, stop, num_top_logprobs, score_prompt
                requests.append(Request(prompt, limit, *options))
        return requests

    def submit(self, pool: EnginePool, requests: Sequence[Request]) -> "AnswerEvents":
        """Queue the requests. Raises ApiError when there is no room for them, now or ever."""
        max_choices = self.settings.num_slots + self.settings.max_waiting  # on an idle worker
        if len(requests) > max_choices:
            message = f"{len(requests)} choices; this server has room for {max_choices}"
            raise ApiError(400, message, param="n")
        answer = AnswerEvents(len(requests), self.metrics, self.settings.deadline_seconds)
        try:
            answer.cancel = pool.submit(requests, answer.add)
        except Busy:
            self.metrics.refused.inc()
            raise ApiError(
                429 if pool.is_open else 503,
                "the server is busy; try again in a moment" if pool.is_open else SHUTTING_DOWN,
                code="queue_full" if pool.is_open else "shutting_down",
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
        self._start = self._first = self._last = time.monotonic()
        self._deadline = asyncio.get_running_loop().time() + deadline_seconds
        self._has_new = asyncio.Event()
        self._unread: list[tuple[int, WorkerEvent]] = []
        self._has_first_token = False

    def add(self, index: int, events: list[WorkerEvent]) -> None:
        self._last = time.monotonic()
        if not self._has_first_token:
            self._has_first_token, self._first = True, self._last
            self.metrics.first_token_seconds.observe(self._first - self._start)
        for event in events:
            if isinstance(event, Finished):
                self.metrics.count_answer(event)
                self.num_tokens += event.num_tokens
            if not (isinstance(event, TextPiece) and self._merge(index, event)):
                self._unread.append((index, event))
        self._has_new.set()

    def timings(self) -> dict[str, float | None]:
        """Measured here, not by the client: an extension beside the usage."""
        seconds = self._last - self._first
        num_after_first = self.num_tokens - self.num_choices
        is_measurable = num_after_first > 0 and seconds > 0
        return {
            "first_token_ms": round(1000 * (self._first - self._start), 1),
            "tokens_per_second": round(num_after_first / seconds, 1) if is_measurable else None,
        }

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
