"""The OpenAI protocol over loopback: answers, streams and errors."""

import asyncio
import time
from typing import Any

import httpx
import pytest
import torch

from nanochat.engine import Engine
from nanochat.web.openai_api import ChatMessage, merge_turns
from tests.memorized_model import LONG
from tests.served import MODEL, chat, complete, events, slowed, user

# ---- answers


def test_an_answer_has_every_field_of_the_protocol(address: str) -> None:
    body = chat(address).json()
    assert body["object"] == "chat.completion" and body["model"] == MODEL
    assert body["id"].startswith("chatcmpl-") and abs(body["created"] - time.time()) < 60
    (choice,) = body["choices"]
    assert choice["index"] == 0 and choice["finish_reason"] == "stop"
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"] == "I am nanochat."
    used = body["usage"]
    assert used["total_tokens"] == used["prompt_tokens"] + used["completion_tokens"]
    assert used["completion_tokens"] > 0


def test_a_stream_has_the_same_text_in_the_protocols_chunks(address: str) -> None:
    chunks = events(address, stream_options={"include_usage": True})
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    first, *middle, last, used = chunks
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    text = "".join(chunk["choices"][0]["delta"]["content"] for chunk in middle)
    assert text == "I am nanochat."
    assert last["choices"][0]["delta"] == {} and last["choices"][0]["finish_reason"] == "stop"
    assert used["choices"] == []
    assert used["usage"] == chat(address).json()["usage"]
    assert all("usage" not in chunk for chunk in events(address))


def test_tool_calls_are_reported_beside_the_text(address: str) -> None:
    messages = user("What is 347 + 588?")
    message = chat(address, messages=messages).json()["choices"][0]["message"]
    assert message["tools"] == [{"expression": "347 + 588", "result": "935"}]
    assert message["content"] == "347 + 588 = 935."
    deltas = [chunk["choices"][0]["delta"] for chunk in events(address, messages=messages)]
    assert [tools for one in deltas for tools in one.get("tools", [])] == message["tools"]


def test_a_last_assistant_message_is_continued(address: str) -> None:
    begin, end = LONG.split(" tock 12")
    messages = [*user("Count"), {"role": "assistant", "content": begin}]
    answer = chat(address, messages=messages).json()["choices"][0]
    assert answer["message"]["content"] == " tock 12" + end


def test_equal_seeds_give_equal_choices_which_differ_from_each_other(address: str) -> None:
    body = {"messages": user("Hmm?"), "temperature": 2, "n": 4, "max_tokens": 20}

    def texts(seed: int | None) -> list[str]:
        choices = chat(address, **body, seed=seed).json()["choices"]
        assert [choice["index"] for choice in choices] == [0, 1, 2, 3]
        return [choice["message"]["content"] for choice in choices]

    assert texts(7) == texts(7) and len(set(texts(7))) > 1
    assert texts(7) != texts(8) and texts(None) != texts(None)


def test_a_stop_string_ends_the_answer_and_is_not_part_of_it(address: str) -> None:
    for stop in ("nano", ["x", "nano"]):
        choice = chat(address, stop=stop).json()["choices"][0]
        assert choice["message"]["content"] == "I am " and choice["finish_reason"] == "stop"


def test_a_truncated_answer_has_the_finish_reason_length(address: str) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        body = chat(address, **{"messages": user("Count"), name: 5}).json()
        assert body["choices"][0]["finish_reason"] == "length"
        assert body["usage"]["completion_tokens"] == 5


def test_unknown_fields_and_nulls_are_ignored(address: str) -> None:
    nulls = {"temperature": None, "max_tokens": None, "stop": None, "n": None, "stream": None}
    tools = [{"type": "function", "function": {"name": "search", "parameters": {}}}]
    neutral: dict[str, Any] = {
        "tools": tools, "tool_choice": "auto", "parallel_tool_calls": True, "logit_bias": {},
        "response_format": {"type": "text"}, "frequency_penalty": 0, "presence_penalty": 0.0,
        "best_of": 1, "suffix": "", "modalities": ["text"], "user": "me", "store": False,
        "metadata": {"a": "b"}, "service_tier": "auto", "reasoning_effort": "low",
    }  # fmt: skip
    answer = chat(address, **nulls, **neutral).json()
    assert answer["choices"][0]["message"]["content"] == "I am nanochat."


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tool_choice", "required"),
        ("tool_choice", {"type": "function", "function": {"name": "search"}}),
        ("response_format", {"type": "json_object"}),
        ("response_format", {"type": "json_schema", "json_schema": {}}),
        ("logit_bias", {"50": -100}),
        ("frequency_penalty", 0.5),
        ("presence_penalty", -1),
        ("repetition_penalty", 1.2),
        ("best_of", 3),
        ("suffix", "end"),
        ("modalities", ["text", "audio"]),
        ("guided_regex", "a+"),
    ],
)
def test_an_unsupported_field_that_would_change_the_answer_is_a_400_naming_it(
    address: str, name: str, value: Any
) -> None:
    for path, body in (
        ("chat/completions", {"messages": user("Hi")}),
        ("completions", {"prompt": "Hi"}),
    ):
        response = httpx.post(f"{address}/v1/{path}", json={**body, name: value})
        error = response.json()["error"]
        assert response.status_code == 400 and error["param"] == name and name in error["message"]


def test_max_tokens_above_the_room_in_the_context_is_what_the_room_allows(address: str) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        answer = chat(address, **{name: 100_000}).json()
        assert answer["choices"][0]["message"]["content"] == "I am nanochat."
    body = complete(address, prompt="tick 10 tock 10", max_tokens=2**31 - 1, temperature=2, n=4)
    assert {choice["finish_reason"] for choice in body["choices"]} <= {"stop", "length"}
    full = "tick 10 " * 500
    refused = chat(address, messages=user(full), max_tokens=1)
    assert refused.json()["error"]["code"] == "context_length_exceeded"


def test_the_server_measures_the_time_to_the_first_token_and_the_speed(
    address: str, engine: Engine
) -> None:
    with slowed(engine, 0.05):
        timings = chat(address, messages=user("Count")).json()["timings"]
        last = events(address, messages=user("Count"), stream_options={"include_usage": True})[-1]
    for one in (timings, last["timings"]):
        assert one["first_token_ms"] >= 50 and 0 < one["tokens_per_second"] < 100
    assert chat(address, max_tokens=1).json()["timings"]["tokens_per_second"] is None


def test_many_simultaneous_requests_get_the_same_answers_as_one_alone(address: str) -> None:
    questions = ["Who are you?", "Smile", "Count", "Markdown", "Evil"] * 8
    alone = {text: chat(address, messages=user(text)).json() for text in set(questions)}

    async def all_at_once() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(limits=limits, timeout=60) as one:
            url = f"{address}/v1/chat/completions"
            return await asyncio.gather(
                *(one.post(url, json={"messages": user(text)}) for text in questions)
            )

    for text, response in zip(questions, asyncio.run(all_at_once()), strict=True):
        assert response.json()["choices"] == alone[text]["choices"]


# ---- plain completions


def test_echoed_logprobs_are_those_of_a_full_forward(address: str, engine: Engine) -> None:
    bos = engine.tokenizer.get_bos_token_id()
    ids = engine.tokenizer.encode("tick 10 tock 10")
    logits = engine.model(torch.tensor([[bos, *ids]]))[0].log_softmax(dim=-1)
    wanted = [float(logits[i, token].detach()) for i, token in enumerate(ids)]
    for prompt in (ids, [bos, *ids], "tick 10 tock 10"):
        body = {"prompt": prompt, "echo": True, "logprobs": 2, "max_tokens": 1, "temperature": 0}
        choice = complete(address, **body)["choices"][0]
        assert choice["text"].startswith("tick 10 tock 10")
        logprobs = choice["logprobs"]
        skipped = 1 if prompt == [bos, *ids] else 0
        assert logprobs["token_logprobs"][:skipped] == [None] * skipped
        assert logprobs["token_logprobs"][skipped:-1] == pytest.approx(wanted, abs=1e-3)
        assert "".join(logprobs["tokens"][skipped:]) == choice["text"]
        offsets, tokens = logprobs["text_offset"], logprobs["tokens"]
        assert offsets[-1] == sum(map(len, tokens[:-1]))
        assert all(len(one) == 2 for one in logprobs["top_logprobs"][skipped:])


@pytest.mark.parametrize("echo", [True, False])
@pytest.mark.parametrize("logprobs", [None, 0, 3])
@pytest.mark.parametrize("max_tokens", [0, 4])
def test_the_chunks_of_a_completion_add_up_to_its_body(
    address: str, echo: bool, logprobs: int | None, max_tokens: int
) -> None:
    body = {"prompt": ["tick 10 tock", "Hi"], "n": 2, "temperature": 1, "seed": 5, "echo": echo}
    body |= {"logprobs": logprobs, "max_tokens": max_tokens}
    whole = complete(address, **body)
    chunks = events(address, "completions", **body, stream_options={"include_usage": True})
    assert chunks[-1]["usage"] == whole["usage"] and len(whole["choices"]) == 4
    for choice in whole["choices"]:
        own = [
            one for chunk in chunks for one in chunk["choices"] if one["index"] == choice["index"]
        ]
        assert "".join(one["text"] for one in own) == choice["text"]
        assert own[-1]["finish_reason"] == choice["finish_reason"]
        assert choice["text"].startswith("tick 10 tock" if echo and choice["index"] < 2 else "")
        parts = [one["logprobs"] for one in own if one["logprobs"]]
        has_logprobs = logprobs is not None and (echo or max_tokens > 0)
        assert bool(parts) == bool(choice["logprobs"]) == has_logprobs
        for name in ("tokens", "token_logprobs", "text_offset") if has_logprobs else ():
            joined = [value for part in parts for value in part[name]]
            rounding = pytest.approx(choice["logprobs"][name], abs=1e-3)
            assert joined == (choice["logprobs"][name] if name == "tokens" else rounding)


def test_the_end_token_of_an_answer_has_a_logprob(address: str, engine: Engine) -> None:
    """lm-eval drops the last token of a scored text and expects it to be a generated one."""
    end = engine.tokenizer.encode_special("<|assistant_end|>")
    ids = engine.tokenizer.encode("tick")
    hook = engine.model.register_forward_hook(
        lambda _, __, logits: logits.index_fill(-1, torch.tensor([end]), 1e4)
    )
    body = {"prompt": ids, "logprobs": 1, "max_tokens": 1, "temperature": 0}
    echoed = complete(address, **body, echo=True)["choices"][0]
    alone = complete(address, **body)["choices"][0]
    hook.remove()
    assert echoed["finish_reason"] == "stop" and echoed["text"] == "tick"
    assert len(echoed["logprobs"]["tokens"]) == len(ids) + 1
    assert alone["text"] == "" and alone["logprobs"]["tokens"] == ["<|assistant_end|>"]
    assert alone["logprobs"]["token_logprobs"] == pytest.approx([0.0], abs=1e-3)


@pytest.mark.parametrize("prompt", [[], [99999], [-1], [["x"]], {}, 3, ["x"] * 65])
def test_an_invalid_prompt_is_a_400(address: str, prompt: Any) -> None:
    response = httpx.post(f"{address}/v1/completions", json={"prompt": prompt})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"].startswith("prompt")


# ---- conversations


def test_messages_are_merged_into_alternating_turns() -> None:
    sent = [
        ("developer", "Be brief."),
        ("user", "Hi"),
        ("user", "there"),
        ("assistant", "Yes?"),
        ("system", "Be long."),
        ("user", [{"type": "text", "text": "Tell"}, {"type": "text", "text": " me"}]),
    ]
    messages = [ChatMessage.model_validate({"role": r, "content": c}) for r, c in sent]
    turns = [
        (turn["role"], "".join(part["text"] for part in turn["content"]))
        for turn in merge_turns(messages)
    ]
    assert turns == [
        ("user", "Be brief.\n\nHi\n\nthere"),
        ("assistant", "Yes?"),
        ("user", "Be long.\n\nTell me"),
    ]


def test_a_long_conversation_is_trimmed_by_complete_turns_on_request(address: str) -> None:
    turns = [*user("Count"), {"role": "assistant", "content": LONG}] * 12
    messages = [*turns, *user("Who are you?")]
    assert chat(address, messages=messages).json()["error"]["code"] == "context_length_exceeded"
    answer = chat(address, messages=messages, trim=True, max_tokens=500).json()
    assert answer["dropped_messages"] % 2 == 0 and 0 < answer["dropped_messages"] < 24
    assert answer["choices"][0]["finish_reason"] in ("stop", "length")
    assert answer["usage"]["prompt_tokens"] <= 512 - 64


# ---- errors


def user_parts(kind: str) -> list[dict[str, Any]]:
    """A user message with one part of a type."""
    return [{"role": "user", "content": [{"type": kind, "text": "1"}]}]


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role", "'assistant'"),
        ({"messages": user_parts("image_url")}, "messages", "image_url"),
        ({"messages": user_parts("python")}, "messages", "python"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages", "user"),
        ({"temperature": -1}, "temperature", "greater than or equal to 0"),
        ({"n": 0}, "n", "1"),
        ({"n": 1000}, "n", "16"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "at most 4"),
        ({"stop": "a" * 1000}, "stop", "200"),
        ({"messages": user("x" * 9000)}, "messages", "512 tokens; the prompt has"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"max_tokens": 10**40}, "max_tokens", "less than or equal to"),
        ({"top_p": "much"}, "top_p", "number"),
    ],
)
def test_an_invalid_request_is_a_400_naming_the_field(
    address: str, body: dict[str, Any], param: str, words: str
) -> None:
    response = chat(address, **body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["param"] == param and words in error["message"]
    assert error["type"] == "invalid_request_error"
