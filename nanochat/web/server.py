"""The ASGI application: the OpenAI protocol over a pool of engines, and the chat page."""

import asyncio
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from pydantic import Field
from pydantic_core import from_json
from starlette.exceptions import HTTPException

from nanochat.engine import Engine
from nanochat.web import markdown
from nanochat.web.guard import Guard
from nanochat.web.inference_service import AnswerEvents, InferenceService, Settings
from nanochat.web.openai_api import (
    DONE,
    ApiError,
    ChatRequest,
    CompletionRequest,
    Envelope,
    ErrorBody,
    Generation,
    Schema,
    chat_prompt,
    server_sent_event,
    text_prompts,
)
from nanochat.web.responses import (
    ResponseBuilder,
    chat_response,
    completion_response,
)

PAGE = Path(__file__).with_name("ui.html")
DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's
MIN_ANSWER_TOKENS = 64  # room in the context that a trimmed conversation leaves
# X-Accel-Buffering: nginx would collect the whole answer before it passes it on.
STREAM_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class EventStream(StreamingResponse):
    """An answer as server-sent events; its work is canceled however the response ends."""

    def __init__(self, answer: AnswerEvents, chunks: AsyncIterator[dict[str, Any]]) -> None:
        super().__init__(_events(chunks), media_type="text/event-stream", headers=STREAM_HEADERS)
        self.answer = answer

    async def __call__(self, *args: Any) -> None:
        try:
            await super().__call__(*args)
        finally:
            self.answer.cancel()


async def _events(chunks: AsyncIterator[dict[str, Any]]) -> AsyncIterator[bytes]:
    try:
        async for chunk in chunks:
            yield server_sent_event(chunk)
        yield DONE
    except ApiError as error:  # the status 200 is sent already: the error becomes an event
        yield server_sent_event(error.body())


async def respond(request: Request, body: Generation, response: ResponseBuilder) -> Response:
    """The answer as the client wants it, canceled when the client disconnects."""
    if body.stream:
        with_usage = bool(body.stream_options and body.stream_options.include_usage)
        return EventStream(response.answer, response.stream(with_usage))

    async def disconnect() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    watching, working = asyncio.create_task(disconnect()), asyncio.create_task(response.body())
    try:
        await asyncio.wait({watching, working}, return_when=asyncio.FIRST_COMPLETED)
        # 499 is nginx's status for a client that has closed the connection; only the log sees it.
        return working.result() if working.done() else Response(status_code=499)
    finally:
        response.answer.cancel()
        watching.cancel()
        working.cancel()


# ---- routes


class _StrictRequest(Request):
    async def json(self) -> Any:
        try:
            return from_json(await self.body(), allow_inf_nan=False)
        except ValueError as error:
            raise ApiError(400, f"the body is not valid JSON: {error}") from None


class StrictRoute(APIRoute):
    """Refuses NaN, lone surrogates and deep nesting, which the json module would accept."""

    def get_route_handler(self) -> Callable[[Request], Any]:
        handle = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handle(_StrictRequest(request.scope, request.receive))

        return strict


class MarkdownRequest(Schema):
    texts: list[str] = Field(max_length=200)


def api_routes(service: InferenceService) -> APIRouter:
    """Everything that needs the API key."""
    router = APIRouter(route_class=StrictRoute, dependencies=[Depends(service.require_api_key)])

    @router.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [service.model_body()]}

    @router.get("/v1/models/{name}")
    async def model(name: str) -> dict[str, Any]:
        service.require_model(name)
        return service.model_body()

    @router.post("/v1/chat/completions", response_model=None)
    async def chat(body: ChatRequest, request: Request) -> Response:
        service.require_model(body.model)
        room = service.context - min(MIN_ANSWER_TOKENS, service.context // 4)
        # Tokenizing a long conversation takes milliseconds that other streams would wait for.
        prompt, num_dropped = await asyncio.to_thread(chat_prompt, body, service.tokenizer, room)
        max_tokens = body.max_completion_tokens or body.max_tokens
        if body.trim and max_tokens:  # the room left may be less than was asked for
            max_tokens = min(max_tokens, service.context - len(prompt))
        answer = service.submit(service.build_requests(body, [prompt], max_tokens))
        envelope = Envelope.new("chat.completion", service.settings.model_name)
        response = chat_response(answer, envelope, service.tokenizer, len(prompt), num_dropped)
        return await respond(request, body, response)

    @router.post("/v1/completions", response_model=None)
    async def complete(body: CompletionRequest, request: Request) -> Response:
        service.require_model(body.model)
        prompts = await asyncio.to_thread(text_prompts, body, service.tokenizer)
        max_tokens = DEFAULT_COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
        tokens = [prompt.tokens for prompt in prompts]
        requests = service.build_requests(body, tokens, max_tokens, body.scores_prompt())
        answer = service.submit(requests)
        envelope = Envelope.new("text_completion", service.settings.model_name)
        response = completion_response(answer, envelope, service.tokenizer, body, prompts)
        return await respond(request, body, response)

    @router.get("/metrics", response_model=None)
    async def metrics() -> Response:
        return Response(service.metrics.render(), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    @router.post("/page/markdown", include_in_schema=False)
    async def markdown_to_html(body: MarkdownRequest) -> dict[str, list[str]]:
        return {"html": await asyncio.to_thread(lambda: list(map(markdown.to_html, body.texts)))}

    return router


def public_routes(service: InferenceService) -> APIRouter:
    """The page, which asks for the key itself, and the health check of load balancers."""
    router = APIRouter()
    page = PAGE.read_text(encoding="utf-8")
    headers = {"Content-Security-Policy": page_policy(page), "Cache-Control": "no-cache"}

    @router.get("/", include_in_schema=False)
    async def root() -> HTMLResponse:
        return HTMLResponse(page, headers=headers)

    @router.get("/health")
    async def health() -> JSONResponse:
        body = service.health_body()
        return JSONResponse(body, status_code=503 if body["status"] == "down" else 200)

    return router


def page_policy(page: str) -> str:
    """A content security policy that admits the page's own script and style and nothing else."""

    def digest(tag: str) -> str:
        inner = page.split(f"<{tag}>", 1)[1].split(f"</{tag}>", 1)[0]
        return f"'sha256-{b64encode(sha256(inner.encode()).digest()).decode()}'"

    return (
        f"default-src 'none'; script-src {digest('script')}; style-src {digest('style')};"
        " connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none';"
        " frame-ancestors 'none'"
    )


def create_app(engines: Sequence[Engine], settings: Settings) -> FastAPI:
    """The application over engines of one model, whose workers live as long as it does."""
    service = InferenceService(engines, settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.pool.start(asyncio.get_running_loop().call_soon_threadsafe)
        yield
        await asyncio.to_thread(service.pool.stop)

    app = FastAPI(
        title="nanochat",
        lifespan=lifespan,
        docs_url=None,  # both load scripts from a CDN
        redoc_url=None,
        redirect_slashes=False,  # a redirect would drop the body of a POST
    )
    app.state.service = service
    errors: dict[int | str, dict[str, Any]] = {
        "4XX": {"model": ErrorBody, "description": "The request cannot be answered."},
        "5XX": {"model": ErrorBody, "description": "The server cannot answer now."},
    }
    app.include_router(api_routes(service), responses=errors)
    app.include_router(public_routes(service), responses=errors)
    if settings.cors_origins:
        app.add_middleware(CORSMiddleware, allow_origins=settings.cors_origins, allow_headers=["*"])
    app.add_middleware(Guard, max_body_bytes=settings.max_body_bytes, metrics=service.metrics)
    for kind in (HTTPException, RequestValidationError):
        app.add_exception_handler(kind, _error_response)
    return app


async def _error_response(_: Request, error: Exception) -> Response:
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]  # the first thing wrong, by field
        field = ".".join(map(str, first["loc"][1:]))[:80] or "the body"
        error = ApiError(400, f"{field}: {first['msg']}", param=field)  # OpenAI never sends 422
    assert isinstance(error, HTTPException)
    if not isinstance(error, ApiError):  # of the framework: 404 and 405
        error = ApiError(error.status_code, error.detail, headers=dict(error.headers or {}))
    return JSONResponse(error.body(), status_code=error.status_code, headers=error.headers)
