"""The ASGI application: the OpenAI protocol over a pool of engines, and the chat page."""

import asyncio
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from pydantic import Field
from starlette.exceptions import HTTPException

from nanochat.web import markdown
from nanochat.web.guard import Guard
from nanochat.web.inference_service import AnswerEvents, InferenceService, Settings
from nanochat.web.models import ModelRegistry
from nanochat.web.openai_api import (
    DONE,
    FAIL_FAST,
    ApiError,
    ChatRequest,
    CompletionRequest,
    Envelope,
    ErrorBody,
    Generation,
    Schema,
    chat_prompt,
    parse_json,
    server_sent_event,
    text_prompts,
)
from nanochat.web.responses import ResponseBuilder, chat_response, completion_response

PAGE = Path(__file__).with_name("page")
SCRIPTS = ("basics", "conversations", "requests", "markdown", "drawing", "chat", "controls")
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

    disconnected = asyncio.create_task(disconnect())
    generated = asyncio.create_task(response.body())
    try:
        await asyncio.wait({disconnected, generated}, return_when=asyncio.FIRST_COMPLETED)
        # 499 is nginx's status for a client that has closed the connection; only the log sees it.
        return generated.result() if generated.done() else Response(status_code=499)
    finally:
        response.answer.cancel()
        disconnected.cancel()
        generated.cancel()


# ---- routes


class _StrictRequest(Request):
    async def json(self) -> Any:
        return parse_json(await self.body())


class ApiRoute(APIRoute):
    """Checks the API key before the body is read, and parses the body strictly."""

    def get_route_handler(self) -> Callable[[Request], Any]:
        handle = super().get_route_handler()

        async def checked(request: Request) -> Response:
            request.app.state.service.require_api_key(request)
            return await handle(_StrictRequest(request.scope, request.receive))

        return checked


class MarkdownRequest(Schema):
    texts: Annotated[list[str], FAIL_FAST, Field(max_length=200)]


def api_routes(service: InferenceService) -> APIRouter:
    """Everything that needs the API key."""
    router, models = APIRouter(route_class=ApiRoute), service.models

    @router.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [*map(service.model_body, models.sources)]}

    @router.get("/v1/models/{name}")
    async def model(name: str) -> dict[str, Any]:
        return service.model_body(models.find(name))

    @router.post("/v1/chat/completions", response_model=None)
    async def chat(body: ChatRequest, request: Request) -> Response:
        body.refuse_unsupported()
        async with models.use(body.model) as model:
            tokenizer, context = model.tokenizer, model.source.context
            room = context - min(MIN_ANSWER_TOKENS, context // 4)
            prompt, num_dropped = await service.in_thread(chat_prompt, body, tokenizer, room)
            max_tokens = body.max_completion_tokens or body.max_tokens
            requests = service.build_requests(body, [prompt], max_tokens, context)
            answer = service.submit(model.pool, requests)
        envelope = Envelope.new("chat.completion", model.source.name)
        response = chat_response(answer, envelope, tokenizer, len(prompt), num_dropped)
        return await respond(request, body, response)

    @router.post("/v1/completions", response_model=None)
    async def complete(body: CompletionRequest, request: Request) -> Response:
        body.refuse_unsupported()
        max_tokens = DEFAULT_COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
        async with models.use(body.model) as model:
            prompts = await service.in_thread(text_prompts, body, model.tokenizer)
            tokens = [prompt.tokens for prompt in prompts]
            requests = service.build_requests(
                body, tokens, max_tokens, model.source.context, body.scores_prompt()
            )
            answer = service.submit(model.pool, requests)
        envelope = Envelope.new("text_completion", model.source.name)
        response = completion_response(answer, envelope, model.tokenizer, body, prompts)
        return await respond(request, body, response)

    @router.get("/metrics", response_model=None)
    async def metrics() -> Response:
        return Response(service.metrics.render(), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    @router.post("/page/markdown", include_in_schema=False)
    async def markdown_to_html(body: MarkdownRequest) -> dict[str, list[str]]:
        return {"html": [await service.in_thread(markdown.to_html, text) for text in body.texts]}

    return router


def public_routes(service: InferenceService) -> APIRouter:
    """The page, which asks for the key itself, and the health check of load balancers."""
    router = APIRouter()
    page = load_page()
    headers = {"Content-Security-Policy": page_policy(page), "Cache-Control": "no-cache"}

    @router.get("/", include_in_schema=False)
    async def root() -> HTMLResponse:
        return HTMLResponse(page, headers=headers)

    @router.get("/health")
    async def health() -> JSONResponse:
        body = service.health_body()
        return JSONResponse(body, status_code=503 if body["status"] == "down" else 200)

    return router


def load_page() -> str:
    """The page as one self-contained document: its style and its scripts stand inside."""

    def read(name: str) -> str:
        return (PAGE / name).read_text(encoding="utf-8")

    script = "\n".join(['"use strict";', *(read(f"{name}.js") for name in SCRIPTS)])
    page = read("ui.html").replace("<style></style>", f"<style>\n{read('ui.css')}</style>")
    return page.replace("<script></script>", f"<script>\n{script}</script>")


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


def create_app(models: ModelRegistry, settings: Settings) -> FastAPI:
    """The application over models, whose workers live as long as it does."""
    service = InferenceService(models, settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        models.start(asyncio.get_running_loop().call_soon_threadsafe)
        yield
        await asyncio.to_thread(models.stop)

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
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            allow_private_network=True,  # a public page may talk to a server on localhost
            expose_headers=["Retry-After"],
        )
    app.add_middleware(
        Guard,
        allowed_hosts=settings.allowed_hosts,
        max_body_bytes=settings.max_body_bytes,
        metrics=service.metrics,
    )
    for kind in (HTTPException, RequestValidationError):
        app.add_exception_handler(kind, _error_response)
    return app


async def _error_response(request: Request, error: Exception) -> Response:
    if isinstance(error, RequestValidationError):
        error = _invalid_request(error)
    assert isinstance(error, HTTPException)
    if not isinstance(error, ApiError):  # of the framework
        message = error.detail
        if error.status_code == 404:
            message = _unknown_path(request)
        if error.status_code == 405:
            message = f"this path does not accept {request.method[:16]}"
        error = ApiError(error.status_code, message, headers=dict(error.headers or {}))
    return JSONResponse(error.body(), status_code=error.status_code, headers=error.headers)


def _invalid_request(error: RequestValidationError) -> ApiError:
    """The first thing wrong, by field; OpenAI never sends status 422."""
    first = error.errors()[0]
    field = ".".join(map(str, first["loc"][1:]))[:80]
    if not field and isinstance(first.get("input"), bytes):  # curl's default
        return ApiError(400, "send the header Content-Type: application/json")
    return ApiError(400, f"{field or 'the body'}: {first['msg']}", param=field or None)


def _unknown_path(request: Request) -> str:
    """A hint for clients whose base_url is wrong."""
    path = request.url.path.rstrip("/")
    for end in ("/chat/completions", "/completions", "/models"):
        if path.endswith(end):
            return f"set the base_url to {request.base_url}v1; the path is then /v1{end}"
    return "no such path; this server has /v1/chat/completions, /v1/completions and /v1/models"
