"""The ASGI application: the OpenAI protocol over a worker, and the page."""

import asyncio
import hmac
import logging
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from fastapi.routing import APIRoute
from pydantic import Field
from pydantic_core import from_json
from starlette.exceptions import HTTPException

from nanochat import runtime
from nanochat.engine import Engine, Finished, TextPiece, ToolCall
from nanochat.web import markdown
from nanochat.web.guard import Guard
from nanochat.web.openai_api import (
    DONE,
    ApiError,
    ChatRequest,
    Defaults,
    Envelope,
    Generation,
    Loose,
    Prompt,
    delta,
    error_body,
    prompt_of,
    sampling_of,
    seed_of,
    server_sent,
    tool_body,
    usage,
)
from nanochat.web.worker import Busy, Failed, Question, Worker, WorkerEvent

logger = logging.getLogger(__name__)

PAGE = Path(__file__).with_name("ui.html")
ALIAS = "nanochat"  # a name of the model that always holds
RETRY_AFTER_SECONDS = 2
MIN_ANSWER_TOKENS = 64  # room that a trimmed conversation leaves in the context
STREAM_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


@dataclass(frozen=True)
class Settings:
    """Of one server."""

    model_name: str
    defaults: Defaults = field(default_factory=Defaults)
    api_key: str = ""
    """What clients must show as a Bearer token; empty: nothing."""
    max_waiting: int = 64
    """Answers that may wait for the engine; more are refused."""
    deadline_seconds: float = 300.0
    """For one request, its waiting included."""
    max_body_bytes: int = 256 * 1024


class Service:
    """A worker and what the routes ask of it."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self.settings = settings
        self.worker = Worker(engine, settings.max_waiting)
        self.tokenizer = engine.tokenizer
        self.context = engine.model.config.sequence_len
        self.started = int(time.time())

    def refuse_stranger(self, request: Request) -> None:
        """Raises ApiError unless the key was shown, where one is wanted."""
        wanted = f"Bearer {self.settings.api_key}".encode()
        shown = request.headers.get("authorization", "").encode()
        if self.settings.api_key and not hmac.compare_digest(wanted, shown):
            raise ApiError(
                401, "this server wants its API key as a Bearer token", code="invalid_api_key"
            )

    def refuse_other_model(self, name: str | None) -> None:
        """Raises ApiError when a model is asked for that is not here."""
        if name and name not in (ALIAS, self.settings.model_name):
            message = (
                f"the model {name[:80]!r} is not here; this server has {self.settings.model_name}"
            )
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

    def questions(
        self, request: Generation, prompt: list[int], max_tokens: int | None
    ) -> list[Question]:
        """One for each choice. Raises ApiError when prompt and answer pass the context."""
        room = self.context - len(prompt)
        if room < 1 or (max_tokens or 0) > room:
            raise ApiError(
                400,
                f"the model's context is {self.context} tokens; the prompt has {len(prompt)} and"
                f" {max_tokens or 1} are to follow: shorten one of them",
                param="messages" if isinstance(request, ChatRequest) else "prompt",
                code="context_length_exceeded",
            )
        limit = min(self.settings.defaults.max_tokens, room) if max_tokens is None else max_tokens
        sampling, stop = sampling_of(request, self.settings.defaults), request.stop_strings()
        seed = seed_of(request)
        seeds = [runtime.derive_seed(seed, choice) for choice in range(request.n or 1)]
        return [Question(prompt, limit, sampling, one, stop) for one in seeds]

    def ask(self, questions: list[Question]) -> "Answers":
        """The answers, begun. Raises ApiError when too many wait already."""
        return Answers(self.worker, questions, self.settings.deadline_seconds)


class Answers:
    """What comes back for one request: events of its choices, in the order in which they come."""

    def __init__(self, worker: Worker, questions: list[Question], deadline_seconds: float) -> None:
        loop = asyncio.get_running_loop()
        self._deadline = loop.time() + deadline_seconds
        self._events: asyncio.Queue[tuple[int, WorkerEvent]] = asyncio.Queue()
        self.num_choices = len(questions)
        try:
            self._tickets = worker.submit(
                [(one, self._deliver(loop, index)) for index, one in enumerate(questions)]
            )
        except Busy:
            raise ApiError(
                429, "the server is busy: too many answers wait already; try again in a moment",
                code="queue_full", headers={"Retry-After": str(RETRY_AFTER_SECONDS)},
            ) from None  # fmt: skip

    def _deliver(
        self, loop: asyncio.AbstractEventLoop, index: int
    ) -> Callable[[WorkerEvent], None]:
        def deliver(event: WorkerEvent) -> None:  # in the worker's thread
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._events.put_nowait, (index, event))

        return deliver

    async def __aiter__(self) -> AsyncIterator[tuple[int, TextPiece | ToolCall | Finished]]:
        """(choice, event) until every choice has ended.

        Raises ApiError when one fails or is late.
        """
        num_open = self.num_choices
        while num_open:
            try:
                async with asyncio.timeout_at(self._deadline):
                    index, event = await self._events.get()
            except TimeoutError:
                raise ApiError(503, "the answer took too long", code="deadline_exceeded") from None
            if isinstance(event, Failed):
                raise ApiError(500, event.reason, code="engine_error")
            num_open -= isinstance(event, Finished)
            yield index, event

    def cancel(self) -> None:
        """End the work on what has not ended."""
        for ticket in self._tickets:
            ticket.cancel()


class EventStream(StreamingResponse):
    """Server-sent events of some answers; when it ends, in whatever way, so does their work."""

    def __init__(self, answers: Answers, events: AsyncIterator[dict[str, Any]]) -> None:
        super().__init__(_as_bytes(events), media_type="text/event-stream", headers=STREAM_HEADERS)
        self.answers = answers

    async def __call__(self, *args: Any) -> None:
        try:
            await super().__call__(*args)
        finally:
            self.answers.cancel()


async def _as_bytes(events: AsyncIterator[dict[str, Any]]) -> AsyncIterator[bytes]:
    """Errors of a stream that has begun are events of it, too."""
    try:
        async for event in events:
            yield server_sent(event)
        yield DONE
    except ApiError as error:
        yield server_sent(error.body())


async def unless_left(request: Request, answers: Answers, work: Awaitable[Response]) -> Response:
    """What `work` comes to; when the client leaves, the work ends."""

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    watching, working = asyncio.create_task(left()), asyncio.ensure_future(work)
    try:
        await asyncio.wait({watching, working}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else Response(status_code=499)
    finally:
        answers.cancel()
        watching.cancel()
        working.cancel()


# ---- chat


async def chat_stream(
    answers: Answers, envelope: Envelope, prompt: Prompt, with_usage: bool
) -> AsyncIterator[dict[str, Any]]:
    """The chunks of a chat."""
    more = {"dropped_messages": prompt.num_dropped} if prompt.num_dropped else {}
    begin = {"role": "assistant", "content": ""}
    for index in range(answers.num_choices):
        yield envelope.chunk([delta(index, begin)], **more)
    num_tokens = 0
    async for index, event in answers:
        if isinstance(event, TextPiece):
            yield envelope.chunk([delta(index, {"content": event.text})])
        elif isinstance(event, ToolCall):
            yield envelope.chunk([delta(index, {"tools": [tool_body(event)]})])
        else:
            num_tokens += event.num_tokens
            yield envelope.chunk([delta(index, {}, event.reason)])
    if with_usage:
        yield envelope.chunk([], usage=usage(len(prompt.tokens), num_tokens))


async def chat_body(answers: Answers, envelope: Envelope, prompt: Prompt) -> Response:
    """A chat answered at once."""
    choices: list[dict[str, Any]] = [
        {
            "index": index,
            "message": {"role": "assistant", "content": "", "tools": []},
            "logprobs": None,
            "finish_reason": None,
        }
        for index in range(answers.num_choices)
    ]
    num_tokens = 0
    async for index, event in answers:
        message = choices[index]["message"]
        if isinstance(event, TextPiece):
            message["content"] += event.text
        elif isinstance(event, ToolCall):
            message["tools"].append(tool_body(event))
        else:
            num_tokens += event.num_tokens
            choices[index]["finish_reason"] = event.reason
    more = {"dropped_messages": prompt.num_dropped} if prompt.num_dropped else {}
    used = usage(len(prompt.tokens), num_tokens)
    return JSONResponse(envelope.body(choices, usage=used, **more))


# ---- routes


class _StrictRequest(Request):
    """JSON without NaN, without lone surrogates, and not too deep."""

    async def json(self) -> Any:
        try:
            return from_json(await self.body(), allow_inf_nan=False)
        except ValueError as error:
            raise ApiError(400, f"the body is not JSON: {error}") from None


class _StrictRoute(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Any]:
        handle = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handle(_StrictRequest(request.scope, request.receive))

        return strict


class MarkdownRequest(Loose):
    """Texts that the page wants to show."""

    texts: list[str] = Field(max_length=200)


def api_routes(service: Service) -> APIRouter:
    """The OpenAI protocol."""
    router = APIRouter(route_class=_StrictRoute)

    @router.get("/v1/models")
    async def models(request: Request) -> dict[str, Any]:
        service.refuse_stranger(request)
        return {"object": "list", "data": [service.model_body()]}

    @router.get("/v1/models/{name}")
    async def model(name: str, request: Request) -> dict[str, Any]:
        service.refuse_stranger(request)
        service.refuse_other_model(name)
        return service.model_body()

    @router.post("/v1/chat/completions", response_model=None)
    async def chat(body: ChatRequest, request: Request) -> Response:
        service.refuse_stranger(request)
        service.refuse_other_model(body.model)
        room = service.context - min(MIN_ANSWER_TOKENS, service.context // 4)
        prompt = await asyncio.to_thread(prompt_of, body, service.tokenizer, room)
        max_tokens = body.max_completion_tokens or body.max_tokens
        if body.trim and max_tokens:
            max_tokens = min(max_tokens, service.context - len(prompt.tokens))
        answers = service.ask(service.questions(body, prompt.tokens, max_tokens))
        envelope = Envelope.new("chat.completion", service.settings.model_name)
        if body.stream:
            return EventStream(answers, chat_stream(answers, envelope, prompt, body.wants_usage()))
        return await unless_left(request, answers, chat_body(answers, envelope, prompt))

    return router


def page_routes(service: Service) -> APIRouter:
    """The page and what it needs beside the protocol."""
    router = APIRouter(route_class=_StrictRoute)
    page = PAGE.read_text(encoding="utf-8")
    headers = {"Content-Security-Policy": page_policy(page), "Cache-Control": "no-cache"}

    @router.get("/", include_in_schema=False)
    async def root() -> HTMLResponse:
        return HTMLResponse(page, headers=headers)

    @router.get("/health")
    async def health() -> JSONResponse:
        worker = service.worker
        body = {
            "status": "ok" if worker.is_alive else "down",
            "model": service.settings.model_name,
            "waiting": worker.num_waiting,
            "running": worker.num_running,
        }
        return JSONResponse(body, status_code=200 if worker.is_alive else 503)

    @router.post("/page/markdown", include_in_schema=False)
    async def to_html(body: MarkdownRequest, request: Request) -> dict[str, list[str]]:
        service.refuse_stranger(request)
        return {"html": await asyncio.to_thread(lambda: list(map(markdown.to_html, body.texts)))}

    return router


def page_policy(page: str) -> str:
    """A content security policy that lets the page's own script and style run and nothing else."""

    def digest(tag: str) -> str:
        inner = page.split(f"<{tag}>", 1)[1].split(f"</{tag}>", 1)[0]
        return f"'sha256-{b64encode(sha256(inner.encode()).digest()).decode()}'"

    return (
        f"default-src 'none'; script-src {digest('script')}; style-src {digest('style')};"
        " connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none';"
        " frame-ancestors 'none'"
    )


def create_app(engine: Engine, settings: Settings) -> FastAPI:
    """The application; the worker lives as long as it does."""
    service = Service(engine, settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.worker.start()
        yield
        await asyncio.to_thread(service.worker.stop)

    app = FastAPI(
        title="nanochat",
        lifespan=lifespan,
        docs_url=None,  # both load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = service
    app.include_router(api_routes(service))
    app.include_router(page_routes(service))
    app.add_middleware(Guard, max_body_bytes=settings.max_body_bytes)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _other_error)
    return app


async def _api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body(), status_code=error.status_code, headers=error.headers)


async def _invalid(_: Request, error: Exception) -> Response:
    """The first thing that is wrong, by field; 422 is 400 in this protocol."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:])[:80] or "the body"
    return JSONResponse(error_body(400, f"{where}: {first['msg']}", where), status_code=400)


async def _other_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    body = error_body(error.status_code, str(error.detail))
    return JSONResponse(body, status_code=error.status_code, headers=error.headers)
