"""The ASGI application: the OpenAI protocol over a pool of engines, and the page."""

import asyncio
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Response
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from fastapi.routing import APIRoute
from pydantic import Field
from pydantic_core import from_json
from starlette.exceptions import HTTPException

from nanochat.engine import Engine
from nanochat.web import markdown
from nanochat.web.guard import Guard
from nanochat.web.openai_api import (
    DONE,
    ApiError,
    ChatRequest,
    CompletionRequest,
    Envelope,
    ErrorBody,
    Loose,
    error_body,
    prompt_of,
    prompts_of,
    server_sent,
)
from nanochat.web.responses import Plan, chat_body, chat_stream, completion_body, completion_stream
from nanochat.web.service import Answers, Service, Settings
from nanochat.web.worker import Scoring

PAGE = Path(__file__).with_name("ui.html")
PROMETHEUS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
DEFAULT_COMPLETION_TOKENS = 16  # the protocol's
MIN_ANSWER_TOKENS = 64  # room that a trimmed conversation leaves in the context
STREAM_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


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


async def unless_left(
    request: HttpRequest, answers: Answers, work: Awaitable[Response]
) -> Response:
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


# ---- routes


class _StrictRequest(HttpRequest):
    """JSON without NaN, without lone surrogates, and not too deep."""

    async def json(self) -> Any:
        try:
            return from_json(await self.body(), allow_inf_nan=False)
        except ValueError as error:
            raise ApiError(400, f"the body is not JSON: {error}") from None


class _StrictRoute(APIRoute):
    def get_route_handler(self) -> Callable[[HttpRequest], Any]:
        handle = super().get_route_handler()

        async def strict(request: HttpRequest) -> Response:
            return await handle(_StrictRequest(request.scope, request.receive))

        return strict


class MarkdownRequest(Loose):
    """Texts that the page wants to show."""

    texts: list[str] = Field(max_length=200)


def api_routes(service: Service) -> APIRouter:
    """The OpenAI protocol."""
    router = APIRouter(route_class=_StrictRoute)

    @router.get("/v1/models")
    async def models(request: HttpRequest) -> dict[str, Any]:
        service.refuse_stranger(request)
        return {"object": "list", "data": [service.model_body()]}

    @router.get("/v1/models/{name}")
    async def model(name: str, request: HttpRequest) -> dict[str, Any]:
        service.refuse_stranger(request)
        service.refuse_other_model(name)
        return service.model_body()

    @router.post("/v1/chat/completions", response_model=None)
    async def chat(body: ChatRequest, request: HttpRequest) -> Response:
        service.refuse_stranger(request)
        service.refuse_other_model(body.model)
        room = service.context - min(MIN_ANSWER_TOKENS, service.context // 4)
        prompt = await asyncio.to_thread(prompt_of, body, service.tokenizer, room)
        max_tokens = body.max_completion_tokens or body.max_tokens
        if body.trim and max_tokens:
            max_tokens = min(max_tokens, service.context - len(prompt.tokens))
        answers = service.ask(service.requests(body, [prompt.tokens], max_tokens))
        envelope = Envelope.new("chat.completion", service.settings.model_name)
        reply = answers, envelope, prompt, service.tokenizer
        if body.stream:
            return EventStream(answers, chat_stream(*reply, body.wants_usage()))
        return await unless_left(request, answers, chat_body(*reply))

    @router.post("/v1/completions", response_model=None)
    async def complete(body: CompletionRequest, request: HttpRequest) -> Response:
        service.refuse_stranger(request)
        service.refuse_other_model(body.model)
        prompts = await asyncio.to_thread(prompts_of, body, service.tokenizer)
        max_tokens = DEFAULT_COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
        tokens = [prompt.tokens for prompt in prompts]
        requests = service.requests(body, tokens, max_tokens)
        scorings = [] if body.logprobs is None else [Scoring(own, body.logprobs) for own in tokens]
        # The scorings go first, so a prompt's likelihoods come before what follows it.
        answers = service.ask([*(scorings if body.echo else ()), *(requests if max_tokens else ())])
        envelope = Envelope.new("text_completion", service.settings.model_name)
        plan = Plan(prompts, bool(body.echo), bool(body.echo and scorings), body.n or 1)
        reply = answers, envelope, plan, service.tokenizer
        if body.stream:
            return EventStream(answers, completion_stream(*reply, body.wants_usage()))
        return await unless_left(request, answers, completion_body(*reply))

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
        body = service.health_body()
        return JSONResponse(body, status_code=503 if body["status"] == "down" else 200)

    @router.get("/metrics", response_model=None)
    async def metrics(request: HttpRequest) -> Response:
        service.refuse_stranger(request)
        return Response(service.rendered_metrics(), media_type=PROMETHEUS_TYPE)

    @router.post("/page/markdown", include_in_schema=False)
    async def to_html(body: MarkdownRequest, request: HttpRequest) -> dict[str, list[str]]:
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


def create_app(engines: Sequence[Engine], settings: Settings) -> FastAPI:
    """The application over engines with one model; their workers live as long as it does."""
    service = Service(engines, settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.pool.start(asyncio.get_running_loop().call_soon_threadsafe)
        yield
        await asyncio.to_thread(service.pool.stop)

    app = FastAPI(
        title="nanochat",
        lifespan=lifespan,
        docs_url=None,  # both load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = service
    errors: dict[int | str, dict[str, Any]] = {
        "4XX": {"model": ErrorBody, "description": "The request cannot be answered."},
        "5XX": {"model": ErrorBody, "description": "The server cannot answer now."},
    }
    app.include_router(api_routes(service), responses=errors)
    app.include_router(page_routes(service), responses=errors)
    if settings.cors_origins:
        app.add_middleware(CORSMiddleware, allow_origins=settings.cors_origins, allow_headers=["*"])
    app.add_middleware(Guard, max_body_bytes=settings.max_body_bytes, metrics=service.metrics)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _other_error)
    return app


async def _api_error(_: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body(), status_code=error.status_code, headers=error.headers)


async def _invalid(_: HttpRequest, error: Exception) -> Response:
    """The first thing that is wrong, by field; 422 is 400 in this protocol."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:])[:80] or "the body"
    return JSONResponse(error_body(400, f"{where}: {first['msg']}", where), status_code=400)


async def _other_error(_: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    body = error_body(error.status_code, str(error.detail))
    return JSONResponse(body, status_code=error.status_code, headers=error.headers)
