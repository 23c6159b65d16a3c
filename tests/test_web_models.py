"""Several models in one server: names, loading, unloading, the option --models."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from nanochat import paths
from nanochat.engine import Engine
from nanochat.errors import UserError
from nanochat.runtime import init_runtime
from nanochat.web.models import ModelSource
from scripts import chat_web
from tests import memorized_model
from tests.served import chat, events, num_at_work, paused, serving_models, user, wait_until

STAGES = ("sft", "base", "mid")


@contextmanager
def serving_stages(engine: Engine, max_loaded: int) -> Iterator[tuple[str, list[str]]]:
    """The address of a server with three stages, and the stages in the order of their loading."""
    loads: list[str] = []

    def source(stage: str) -> ModelSource:
        def load() -> list[Engine]:
            loads.append(stage)
            return [Engine(engine.model, engine.tokenizer)]

        return ModelSource(f"nanochat-d2-{stage}", stage, 512, load)

    with serving_models([*map(source, STAGES)], max_loaded=max_loaded) as address:
        yield address, loads


def test_models_are_listed_and_loaded_when_they_are_first_asked_for(engine: Engine) -> None:
    with serving_stages(engine, max_loaded=3) as (address, loads):
        listed = httpx.get(f"{address}/v1/models").json()["data"]
        assert [model["id"] for model in listed] == [f"nanochat-d2-{name}" for name in STAGES]
        assert [model["stage"] for model in listed] == list(STAGES)
        assert [model["loaded"] for model in listed] == [True, False, False]
        assert loads == ["sft"]
        for name, used in (
            ("nanochat-d2-base", "base"), ("base", "base"), ("nanochat", "sft"), (None, "sft"),
        ):  # fmt: skip
            answer = chat(address, model=name).json()
            assert answer["model"] == f"nanochat-d2-{used}"
            assert answer["choices"][0]["message"]["content"] == "I am nanochat."
        assert {event["model"] for event in events(address, model="mid")} == {"nanochat-d2-mid"}
        assert loads == ["sft", "base", "mid"]
        unknown = chat(address, model="rl")
        assert unknown.status_code == 404 and "nanochat-d2-mid" in unknown.text
        assert httpx.get(f"{address}/health").json()["engines"] == 3


def test_the_least_recently_used_idle_model_makes_room(engine: Engine) -> None:
    def tokens(address: str) -> float:
        lines = httpx.get(f"{address}/metrics").text.splitlines()
        return next(float(x.split()[1]) for x in lines if x.startswith("nanochat_tokens_total"))

    with serving_stages(engine, max_loaded=2) as (address, loads):
        for name in ("base", "sft", "mid", "sft", "base"):
            before = tokens(address)
            used = chat(address, model=name).json()["usage"]["completion_tokens"]
            assert tokens(address) == before + used  # those of unloaded models still count
            assert httpx.get(f"{address}/health").json()["status"] == "ok"
        assert loads == ["sft", "base", "mid", "base"]
        num_threads = sum(thread.name == "engine" for thread in threading.enumerate())
        assert num_threads == 2


def test_a_model_that_answers_is_not_unloaded(engine: Engine) -> None:
    with (
        serving_stages(engine, max_loaded=1) as (address, loads),
        ThreadPoolExecutor() as pool,
    ):
        with paused(engine):
            long = pool.submit(chat, address, messages=user("Count"))
            wait_until(lambda: num_at_work(address) == 1)
            refused = chat(address, model="base")
        assert refused.status_code == 429 and refused.headers["retry-after"]
        assert refused.json()["error"]["code"] == "models_busy"
        assert long.result().json()["choices"][0]["finish_reason"] == "stop"
        assert chat(address, model="base").status_code == 200 and loads == ["sft", "base"]


def test_simultaneous_requests_load_a_model_once(engine: Engine) -> None:
    with serving_stages(engine, max_loaded=2) as (address, loads), ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(chat, address, model="base") for _ in range(8)]
        assert {answer.result().status_code for answer in answers} == {200}
        assert loads == ["sft", "base"]


def test_a_model_that_cannot_be_loaded_is_an_error_without_its_path(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> list[Engine]:
        raise UserError("no checkpoint in /private/path")

    good = ModelSource("nanochat-d2-sft", "sft", 512, lambda: [engine])
    with serving_models(
        [good, ModelSource("nanochat-d2-rl", "rl", 512, fail)], max_loaded=2
    ) as url:
        response = chat(url, model="rl")
        assert response.status_code == 503 and "private" not in response.text
        assert response.json()["error"]["code"] == "model_not_loaded"
        assert chat(url).status_code == 200
    assert "/private/path" in caplog.text


# ---- the option


@pytest.fixture
def stages(base_dir: Path) -> None:
    """The same model as two stages."""
    memorized_model.save(base_dir)
    checkpoints = paths.checkpoints_dir("sft").parent
    target = paths.checkpoints_dir("mid")
    target.symlink_to(checkpoints / paths.checkpoints_dir("sft").name)


@pytest.mark.usefixtures("stages")
def test_models_are_those_that_have_a_checkpoint_or_those_that_are_named() -> None:
    runtime = init_runtime("cpu")

    def stages_of(**options: str) -> list[str]:
        sources = chat_web.model_sources(chat_web.Options(**options), runtime)  # type: ignore[arg-type]
        assert {source.context for source in sources} == {512}
        return [source.stage for source in sources]

    assert stages_of() == ["sft", "mid"]
    assert stages_of(source="mid") == ["mid", "sft"]
    assert stages_of(models="none") == stages_of(models="sft") == ["sft"]
    assert stages_of(models="mid, sft") == ["sft", "mid"]
    with pytest.raises(UserError, match=r"--models: no stage 'chat'; expected base, mid, sft, rl"):
        stages_of(models="mid,chat")
    with pytest.raises(UserError):
        stages_of(models="base")


def test_origins_are_checked_and_written_as_browsers_send_them() -> None:
    assert chat_web.origins("https://A.example/, http://localhost:3000") == (
        "https://a.example", "http://localhost:3000",
    )  # fmt: skip
    assert chat_web.origins("*") == ("*",) and chat_web.origins("") == ()
    for wrong in ("a.example", "https://a.example/path", "https://"):
        with pytest.raises(UserError, match="--cors_origins"):
            chat_web.origins(wrong)
