"""Clients that people use, against a server on loopback: openai, llm, lm-eval."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
import yaml

from nanochat import export
from nanochat.engine import Engine
from tests.memorized_model import LONG, model_and_tokenizer
from tests.served import MODEL, events, num_at_work, paused, serving, user, wait_until


def output_of(*arguments: str, **environment: str) -> str:
    """The stdout of a program of this environment, run without a proxy."""
    clean = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    process = subprocess.run(
        [sys.executable, "-m", *arguments],
        env={**clean, **environment}, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    return process.stdout


# ---- the openai package


@pytest.fixture(scope="module")
def client(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="unused", max_retries=0)


def test_the_openai_package_gets_bodies_and_streams(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=user("Smile"))
    assert answer.choices[0].message.content == "😀 é 汉字"
    stream = client.chat.completions.create(model=MODEL, messages=user("Smile"), stream=True)
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert "".join(pieces) == "😀 é 汉字" and "�" not in "".join(pieces)
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL


def test_a_conversation_is_continued(client: openai.OpenAI) -> None:
    messages = user("My name is Ann.")
    messages.append({"role": "assistant", "content": "Hello Ann."})
    messages += user("What is my name?")
    answer = client.chat.completions.create(model=MODEL, messages=messages)
    assert answer.choices[0].message.content == "You are Ann."


def test_chat_logprobs_cover_the_tokens_of_the_text(client: openai.OpenAI, engine: Engine) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=user("Smile"), logprobs=True, top_logprobs=3
    )
    assert answer.choices[0].logprobs is not None
    content = answer.choices[0].logprobs.content or []
    text = b"".join(bytes(entry.bytes or []) for entry in content).decode()
    assert text == answer.choices[0].message.content == "😀 é 汉字"
    for entry in content:
        assert len(entry.top_logprobs) == 3
        assert entry.logprob == entry.top_logprobs[0].logprob <= 0
    chunks = events(
        str(client.base_url).removesuffix("/v1/"), messages=user("Smile"), logprobs=True
    )
    streamed = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    logprobs = [entry["logprob"] for chunk in streamed if chunk for entry in chunk["content"]]
    assert logprobs == pytest.approx([entry.logprob for entry in content], abs=1e-3)


def test_every_form_of_a_prompt_is_completed(client: openai.OpenAI, engine: Engine) -> None:
    text = "tick 10 tock 10 tick 11"
    ids = engine.tokenizer.encode(text)
    prompts: list[Any] = [text, ids, [text, "Hi"], [ids, ids]]
    answers = [
        client.completions.create(model=MODEL, prompt=prompt, max_tokens=6, temperature=0)
        for prompt in prompts
    ]
    assert [len(answer.choices) for answer in answers] == [1, 1, 2, 2]
    assert len({answer.choices[0].text for answer in answers}) == 1
    stream = client.completions.create(
        model=MODEL, prompt=text, max_tokens=6, temperature=0, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in stream) == answers[0].choices[0].text


def test_streams_have_usage_choices_and_stop_strings(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=MODEL, messages=user("Count"), n=2, stop=["tock 12", "never"], stream=True,
        stream_options={"include_usage": True}, max_completion_tokens=200, seed=1, temperature=0,
    )  # fmt: skip
    chunks = list(stream)
    texts = {0: "", 1: ""}
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == dict.fromkeys((0, 1), LONG.split("tock 12")[0])
    reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices]
    assert reasons.count("stop") == 2 and len({chunk.id for chunk in chunks}) == 1
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens > 20


def test_each_of_our_errors_raises_the_matching_exception_of_the_openai_package(
    client: openai.OpenAI, engine: Engine
) -> None:
    def ask(**body: Any) -> None:
        client.chat.completions.create(**{"model": MODEL, "messages": user("Hi"), **body})

    with pytest.raises(openai.NotFoundError) as unknown:
        ask(model="gpt-4")
    assert unknown.value.code == "model_not_found" and unknown.value.param == "model"
    with pytest.raises(openai.BadRequestError) as long:
        ask(messages=user("x" * 9000))
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError):
        ask(temperature=3)
    with serving(engine, api_key="secret") as address, pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{address}/v1", api_key="x").models.list()
    hook = engine.model.embedding.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(openai.InternalServerError):
        ask()
    with pytest.raises(openai.APIError, match="the engine failed"):
        list(client.chat.completions.create(model=MODEL, messages=user("Hi"), stream=True))
    hook.remove()


def test_closing_a_stream_in_the_openai_package_stops_the_generation(
    client: openai.OpenAI, address: str, engine: Engine
) -> None:
    with paused(engine, after=5):
        stream = client.chat.completions.create(model=MODEL, messages=user("Count"), stream=True)
        next(stream)
        assert num_at_work(address) == 1
        stream.close()
    wait_until(lambda: num_at_work(address) == 0)


# ---- the llm command


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--no-stream"]], ids=["stream", "body"])
def test_the_llm_command_prints_the_answer(address: str, tmp_path: Path, flags: list[str]) -> None:
    models = [{"model_id": "ours", "model_name": MODEL, "api_base": f"{address}/v1"}]
    (tmp_path / "extra-openai-models.yaml").write_text(yaml.dump(models))
    arguments = ["Who are you?", "-m", "ours", "--key", "unused", *flags]
    answer = output_of("llm", *arguments, LLM_USER_PATH=str(tmp_path))
    assert answer.strip() == "I am nanochat."


# ---- lm-eval

CHOICES = [
    {"context": "Who are you?", "choices": ["I am nanochat.", "I am Ann."], "gold": 0},
    {"context": "Hello", "choices": [" tick", " tock 10 tick"], "gold": 1},
    {"context": "tick 10 tock", "choices": [" 10", " 16", " 11"], "gold": 0},
]
TASKS: list[dict[str, Any]] = [
    {
        "task": "ours_choice", "output_type": "multiple_choice", "doc_to_text": "{{context}}",
        "doc_to_choice": "{{choices}}", "doc_to_target": "{{gold}}", "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    },
    {
        "task": "ours_text", "output_type": "loglikelihood_rolling", "doc_to_text": "",
        "doc_to_target": "{{context}}", "metric_list": [{"metric": "bits_per_byte"}],
    },
    {
        "task": "ours_generate", "output_type": "generate_until", "doc_to_text": "{{context}}",
        "doc_to_target": "x", "generation_kwargs": {"until": ["1"], "max_gen_toks": 8},
        "metric_list": [{"metric": "exact_match"}],
    },
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="needs lm-eval: uv sync --extra eval"
)
def test_lm_eval_gets_the_logprobs_of_a_full_forward_pass_and_the_same_text(
    address: str, engine: Engine, tmp_path: Path
) -> None:
    model, tokenizer = model_and_tokenizer()
    export.export_hf(model, tokenizer, tmp_path / "hf", torch.float32)
    questions = tmp_path / "questions.json"
    questions.write_text("\n".join(json.dumps(question) for question in CHOICES))
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(questions)}}}
    for task in TASKS:
        config = {**task, **data, "test_split": "test"}
        (tmp_path / f"{task['task']}.yaml").write_text(yaml.dump(config))
    where = f"model={MODEL},base_url={address}/v1/completions,tokenizer={tmp_path / 'hf'}"
    output_of(
        "lm_eval", "--model", "local-completions", "--model_args", where, "--include_path",
        str(tmp_path), "--tasks", ",".join(task["task"] for task in TASKS), "--log_samples",
        "--output_path", str(tmp_path / "out"), HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "home"),
        OPENAI_API_KEY="unused",
    )  # fmt: skip
    samples = {
        name.stem.split("_2")[0].removeprefix("samples_"): [
            json.loads(line) for line in name.read_text().splitlines()
        ]
        for name in (tmp_path / "out").rglob("samples_*.jsonl")
    }
    for sample in samples["ours_choice"]:
        doc = sample["doc"]
        for choice, response in zip(doc["choices"], sample["filtered_resps"], strict=True):
            expected, is_greedy = likelihood(engine, doc["context"], choice)
            assert float(response[0]) == pytest.approx(expected, abs=1e-2)
            assert str(response[1]) == str(is_greedy)
    for sample in samples["ours_text"]:
        expected, _ = likelihood(engine, "", sample["doc"]["context"])
        assert float(sample["filtered_resps"][0]) == pytest.approx(expected, abs=1e-2)
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="unused")
    for sample in samples["ours_generate"]:
        answer = client.completions.create(
            model=MODEL, prompt=sample["doc"]["context"], stop="1", max_tokens=8, temperature=0
        )
        assert sample["filtered_resps"][0] == answer.choices[0].text


def likelihood(engine: Engine, context: str, text: str) -> tuple[float, bool]:
    """Log-likelihood of a text after a context, and whether each token is the most likely one.

    Both are tokenized together, as lm-eval does.
    """
    ids = engine.tokenizer.encode(context + text)
    start = len(engine.tokenizer.encode(context))
    row = [engine.tokenizer.get_bos_token_id(), *ids]
    with torch.inference_mode():
        logprobs = engine.model(torch.tensor([row]))[0].log_softmax(dim=-1)
    taken = [(logprobs[at], ids[at]) for at in range(start, len(ids))]
    return (
        sum(float(choices[token]) for choices, token in taken),
        all(int(choices.argmax()) == token for choices, token in taken),
    )
