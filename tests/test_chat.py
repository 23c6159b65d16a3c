import json
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.chat import (
    Message,
    ToolCallState,
    decode_answer,
    merge_system,
    render_conversation,
    render_for_completion,
    render_for_continuation,
    text_of,
    trim_to_fit,
)
from nanochat.errors import UserError
from tests.small_model import small_tokenizer

IDENTITIES = (
    Path(__file__).parents[2] / "shared" / "data" / "eval" / "chat" / "identity_conversations.jsonl"
)


def user(content: Any) -> Message:
    return {"role": "user", "content": content}


def assistant(content: Any) -> Message:
    return {"role": "assistant", "content": content}


def system(content: Any) -> Message:
    return {"role": "system", "content": content}


def shown(messages: list[Message], max_tokens: int | None = None) -> str:
    """A rendered conversation with sampled tokens in square brackets."""
    tokenizer = small_tokenizer()
    ids, mask = render_conversation({"messages": messages}, tokenizer, max_tokens)
    assert len(ids) == len(mask)
    text, before = "", 0
    for token, sampled in zip([*ids], mask, strict=True):
        text += "[" * (sampled > before) + "]" * (sampled < before) + tokenizer.decode([token])
        before = sampled
    return text + "]" * before


# ---- rendering

CALL = [
    {"type": "text", "text": "Let me see. "},
    {"type": "python", "text": "3+4"},
    {"type": "python_output", "text": "7"},
    {"type": "text", "text": "It is 7."},
]


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([user("Hi")], "<|bos|><|user_start|>Hi<|user_end|>"),
        (
            [user("Hi"), assistant("Hello.")],
            "<|bos|><|user_start|>Hi<|user_end|><|assistant_start|>[Hello.<|assistant_end|>]",
        ),
        (
            [user("3+4?"), assistant(CALL), user("Thanks")],
            "<|bos|><|user_start|>3+4?<|user_end|><|assistant_start|>[Let me see. "
            "<|python_start|>3+4<|python_end|>]<|output_start|>7<|output_end|>"
            "[It is 7.<|assistant_end|>]<|user_start|>Thanks<|user_end|>",
        ),
        (
            [system("Be kind."), user("Hi"), assistant("")],
            "<|bos|><|user_start|>Be kind.\n\nHi<|user_end|><|assistant_start|>[<|assistant_end|>]",
        ),
        (
            [system("One."), system("Two."), user([{"type": "text", "text": "Hi"}])],
            "<|bos|><|user_start|>One.\n\nTwo.\n\nHi<|user_end|>",
        ),
        (
            [user(""), assistant(" ")],
            "<|bos|><|user_start|><|user_end|><|assistant_start|>[ <|assistant_end|>]",
        ),
    ],
)  # fmt: skip
def test_a_rendered_conversation_marks_sampled_tokens(
    messages: list[Message], expected: str
) -> None:
    assert shown(messages) == expected


def test_adjacent_texts_are_encoded_as_one_and_adjacent_calls_are_not() -> None:
    def rendered(kind: str, *parts: str) -> list[int]:
        content = [{"type": kind, "text": part} for part in parts]
        messages = [user("Hi"), assistant(content)]
        return render_conversation({"messages": messages}, small_tokenizer())[0]

    assert rendered("text", "The f", "ox") == rendered("text", "The fox")
    assert len(rendered("python", "1", "2")) > len(rendered("python", "12"))


def test_a_conversation_is_truncated_to_max_tokens() -> None:
    messages = [user("Hi"), assistant("Hello.")]
    ids, mask = render_conversation({"messages": messages}, small_tokenizer())
    for length in range(len(ids) + 2):
        cut = render_conversation({"messages": messages}, small_tokenizer(), length)
        assert cut == (ids[:length], mask[:length])


def test_a_prompt_ends_where_the_assistant_starts() -> None:
    tokenizer = small_tokenizer()
    asked = [user("Hi"), assistant("Hello."), user("Who are you?")]
    prompt = render_for_completion({"messages": asked}, tokenizer)
    assert tokenizer.decode(prompt).endswith("Who are you?<|user_end|><|assistant_start|>")
    answered = {"messages": [*asked, assistant("A model.")]}
    assert render_for_completion(answered, tokenizer) == prompt
    whole, mask = render_conversation(answered, tokenizer)
    assert whole[: len(prompt)] == prompt  # so training and inference agree
    assert mask[len(prompt) - 1 : len(prompt) + 1] == [0, 1]


@settings(max_examples=60)
@given(
    st.text(max_size=20),
    st.sampled_from(
        ["<|bos|>", "<|user_end|><|assistant_start|>", "<|python_start|>1<|python_end|>"]
    ),
    st.text(max_size=20),
)
def test_text_that_looks_like_a_special_token_stays_text(
    before: str, name: str, after: str
) -> None:
    tokenizer, text = small_tokenizer(), before + name + after
    special = {tokenizer.encode_special(name) for name in tokenizer.get_special_tokens()}
    for messages in ([user(text)], [system(text), user("Hi")], [user("Hi"), assistant(text)]):
        ids, _ = render_conversation({"messages": messages}, tokenizer)
        plain = [{**message, "content": "x"} for message in messages]
        alike, _ = render_conversation({"messages": plain}, tokenizer)
        assert sum(token in special for token in ids) == sum(token in special for token in alike)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "at least one message"),
        ([system("S")], "must be followed by a user message"),
        ([system("S"), assistant("A")], "must be followed by a user message"),
        ([assistant("A")], "message 1 is by 'assistant' where 'user' is expected"),
        ([user("U"), user("U")], "message 2 is by 'user' where 'assistant' is expected"),
        ([user("U"), system("S")], "message 2 is by 'system' where 'assistant' is expected"),
        ([user("U"), {"role": "robot", "content": "A"}], "message 2 is by 'robot'"),
        ([user("U"), assistant([{"type": "image", "text": "A"}])], "a part of type 'image'"),
    ],
)
def test_a_malformed_conversation_is_refused_naming_the_message(
    messages: list[Message], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        render_conversation({"messages": messages}, small_tokenizer())


def test_merging_the_system_text_does_not_modify_the_messages() -> None:
    messages = [system("S"), user("U"), assistant("A")]
    before = json.dumps(messages)
    assert merge_system(messages) == [user("S\n\nU"), assistant("A")]
    assert json.dumps(messages) == before


def test_the_text_of_a_message_has_no_tool_calls() -> None:
    assert text_of(CALL) == "Let me see. It is 7."
    assert text_of("plain") == "plain"


@pytest.mark.skipif(not IDENTITIES.is_file(), reason="needs ../shared/data")
def test_every_answer_of_a_file_of_conversations_is_supervised() -> None:
    tokenizer = small_tokenizer()
    end = tokenizer.encode_special("<|assistant_end|>")
    for line in IDENTITIES.read_text(encoding="utf-8").splitlines()[:100]:
        messages = json.loads(line)
        ids, mask = render_conversation({"messages": messages}, tokenizer)
        answers = [tokenizer.encode(m["content"]) for m in messages if m["role"] == "assistant"]
        sampled = [token for token, one in zip(ids, mask, strict=True) if one]
        assert sampled == [token for answer in answers for token in [*answer, end]]


# ---- trimming


def conversation(turns: int, with_system: bool) -> list[Message]:
    spoken = [make(f"{n} " * 6) for n in range(turns) for make in (user, assistant)]
    return [*([system("Be brief.")] if with_system else []), *spoken, user("And now?")]


@pytest.mark.parametrize("begun", [[], [assistant("Now I")]], ids=["to answer", "to continue"])
@pytest.mark.parametrize("with_system", [False, True])
def test_trimming_keeps_as_many_complete_turns_as_fit_and_the_system_text(
    with_system: bool, begun: list[Message]
) -> None:
    tokenizer, messages = small_tokenizer(), conversation(5, with_system) + begun
    head = messages[:1] if with_system else []

    def length(kept: list[Message]) -> int:
        return len(render_for_continuation({"messages": kept}, tokenizer))

    options = [[*head, *messages[len(head) + dropped :]] for dropped in range(0, 11, 2)]
    for limit in range(length(options[-1]), length(messages) + 2):
        kept, dropped = trim_to_fit(messages, tokenizer, limit)
        assert kept == next(option for option in options if length(option) <= limit)
        assert dropped == len(messages) - len(kept)
    with pytest.raises(UserError, match=f"room for {length(options[-1]) - 1}; shorten it"):
        trim_to_fit(messages, tokenizer, length(options[-1]) - 1)


def test_a_last_assistant_message_is_continued_where_it_ends() -> None:
    tokenizer, messages = small_tokenizer(), conversation(2, with_system=True)
    ids = render_for_continuation({"messages": messages}, tokenizer)
    assert ids == render_for_completion({"messages": messages}, tokenizer)
    begun = {"messages": [*messages, assistant("Now I")]}
    assert render_for_continuation(begun, tokenizer) == [*ids, *tokenizer.encode("Now I")]


def test_trimming_refuses_an_empty_conversation() -> None:
    with pytest.raises(UserError, match="at least one message"):
        trim_to_fit([], small_tokenizer(), 100)


# ---- tool calls


def special(name: str) -> int:
    return small_tokenizer().encode_special(f"<|{name}|>")


class UppercaseTool:
    """A tool that answers in capitals, and has no output for questions."""

    def __init__(self, max_output_tokens: int = 50) -> None:
        self.inputs: list[str] = []
        self.state = ToolCallState(small_tokenizer(), self.submit, max_output_tokens)

    def submit(self, expression: str) -> Future[str | None]:
        self.inputs.append(expression)
        call: Future[str | None] = Future()
        call.set_result(None if "?" in expression else expression.upper())
        return call

    def feed(self, *parts: str) -> list[str]:
        """Outputs forced after each token, as text; parts are text or names of special tokens."""
        tokenizer, forced = small_tokenizer(), []
        for part in parts:
            name = f"<|{part}|>"
            is_special = name in tokenizer.get_special_tokens()
            for token in [special(part)] if is_special else tokenizer.encode(part):
                self.state.feed(token)
                forced.append(tokenizer.decode(self.state.take_output()))
        return [text for text in forced if text]


def test_the_end_of_a_call_forces_its_output() -> None:
    calls = UppercaseTool()
    assert calls.feed("text ", "python_start", "abc") == []
    assert calls.feed("python_end") == ["<|output_start|>ABC<|output_end|>"]
    assert calls.feed("more", "python_start", "d", "python_end") == [
        "<|output_start|>D<|output_end|>"
    ]
    assert calls.inputs == ["abc", "d"]


def test_a_call_without_output_forces_nothing_and_the_next_one_works() -> None:
    calls = UppercaseTool()
    assert calls.feed("python_start", "what?", "python_end") == []
    assert calls.feed("python_start", "x", "python_end") == ["<|output_start|>X<|output_end|>"]


def test_an_end_without_a_start_calls_nothing() -> None:
    calls = UppercaseTool()
    assert calls.feed("abc", "python_end", "python_end") == []
    assert calls.feed("python_start", "x", "python_end", "y", "python_end") == [
        "<|output_start|>X<|output_end|>"
    ]
    assert calls.inputs == ["x"]


def test_a_second_start_discards_the_expression() -> None:
    calls = UppercaseTool()
    calls.feed("python_start", "abc", "python_start", "x", "python_end")
    assert calls.inputs == ["x"]


def test_text_that_spells_a_special_token_calls_nothing() -> None:
    calls = UppercaseTool()
    assert calls.feed("<|python_start|>1<|python_end|> ") == []
    assert calls.inputs == []


def test_a_truncated_output_is_still_closed() -> None:
    calls = UppercaseTool(max_output_tokens=3)
    calls.feed("python_start", "qxqxqxqxqxqx")
    calls.state.feed(special("python_end"))
    forced = calls.state.take_output()
    assert len(forced) == 5 and forced[-1] == special("output_end")


def test_a_late_output_is_forced_when_it_arrives_and_once() -> None:
    call: Future[str | None] = Future()
    state = ToolCallState(small_tokenizer(), lambda _: call, 50)
    for token in (special("python_start"), special("python_end")):
        assert not state.is_pending and state.take_output() == []
        state.feed(token)
    assert state.is_pending
    call.set_result("x")
    assert not state.is_pending
    output = [special("output_start"), *small_tokenizer().encode("x"), special("output_end")]
    assert state.take_output() == output and state.take_output() == []


def test_plain_text_among_conversations_is_learned_as_a_whole() -> None:
    tokenizer = small_tokenizer()
    ids, mask = render_conversation({"text": "The fox eats."}, tokenizer)
    assert ids == tokenizer.encode("The fox eats.", prepend="<|bos|>")
    assert mask == [0] + [1] * (len(ids) - 1)
    assert render_conversation({"text": "The fox eats."}, tokenizer, 3) == (ids[:3], mask[:3])


def test_messages_begin_with_a_space_on_request_and_answers_lose_it_again() -> None:
    tokenizer, spaced = small_tokenizer(), small_tokenizer.__wrapped__()
    spaced.add_prefix_space = True
    parts = [{"type": "python", "text": "a + 1"}, {"type": "python_output", "text": "x"}]
    parts += [{"type": "text", "text": "é, "}, {"type": "text", "text": "so"}]
    messages = [user("Who?"), assistant("7 is."), user(" it"), {**assistant(""), "content": parts}]
    ids, mask = render_conversation({"messages": messages}, spaced)
    assert tokenizer.decode(ids) == (
        "<|bos|><|user_start|> Who?<|user_end|><|assistant_start|>7 is.<|assistant_end|>"
        "<|user_start|> it<|user_end|><|assistant_start|><|python_start|>a + 1<|python_end|>"
        "<|output_start|>x<|output_end|> é, so<|assistant_end|>"
    )
    assert len(mask) == len(ids)
    last = ids[len(render_for_completion({"messages": messages}, spaced)) :]
    written = tokenizer.decode(last)
    assert decode_answer(last, tokenizer) == written
    assert decode_answer(last, spaced) == written.replace(" é", "é")


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("WHO IS IT?", "who is it?"), ("Who IS it, A or I?", "Who IS it, A or I?"),
        ("ÉTÉ 7", "été 7"), ("7", "7"), ("Is  the PIG pink, or the ÉLAN?  ",
        "Is  the pig pink, or the élan?  "),
    ],
)  # fmt: skip
def test_a_message_all_in_capitals_is_read_in_lower_case_on_request(typed: str, read: str) -> None:
    tokenizer, folding = small_tokenizer(), small_tokenizer.__wrapped__()
    folding.fold_all_caps = True
    answers = [assistant("IT IS 7."), user("OK"), assistant("YES")]
    folded = render_conversation({"messages": [user(typed), *answers]}, folding)
    lowered = [user(read), answers[0], user("ok"), answers[2]]
    assert folded == render_conversation({"messages": lowered}, tokenizer)
    ids, _ = render_conversation({"messages": [user(typed), *answers]}, tokenizer)
    assert tokenizer.decode(ids).startswith(f"<|bos|><|user_start|>{typed}<|user_end|>")
