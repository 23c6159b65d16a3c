"""One's own conversations: the formats they come in, and the runs that are made of them."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from nanochat.configurator import parse
from nanochat.errors import UserError
from nanochat.runtime import init_runtime
from scripts import chat_sft, mid_train
from scripts.mid_train import Options
from scripts.training import (
    Setup,
    chosen_mixture,
    held_out_conversations,
    own_conversations,
    start_from_parent,
)
from tasks.common import Task
from tasks.customjson import CustomJSON
from tests.shared_data import EVAL_DATA, json_lines, needs_eval_data
from tests.small_model import save_small_run

MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
OPENAI = {"messages": [{**MESSAGES[0], "name": "a"}, {**MESSAGES[1], "weight": 1}], "id": 7}
SHAREGPT = {
    "id": "x1",
    "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}],
}
ALPACA = {"instruction": "Hi", "input": "", "output": "Hello"}
FORMATS = [MESSAGES, OPENAI, SHAREGPT, ALPACA, {"prompt": "Hi", "completion": "Hello"}]


def conversations(path: Path) -> list[Any]:
    task = CustomJSON(str(path))
    return [task[index]["messages"] for index in range(len(task))]


@pytest.mark.parametrize("value", FORMATS)
def test_each_format_is_read_from_lines_arrays_and_indented_text(
    tmp_path: Path, value: Any
) -> None:
    path = tmp_path / "my.json"
    for text in (
        f"{json.dumps(value)}\n\n{json.dumps(value)}\n",
        json.dumps([value, value]),
        json.dumps([value, value], indent=4),
        f"{json.dumps(value, indent=4)}\n{json.dumps(value, indent=4)}",
    ):
        path.write_text(text)
        assert conversations(path) == [MESSAGES] * 2


def test_formats_may_be_mixed_in_a_folder_and_test_files_are_not_trained_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for number, value in enumerate(FORMATS):
        (tmp_path / f"train-{number}.jsonl").write_text(json.dumps(value))
    (tmp_path / "test-00000.jsonl").write_text("not read")
    (tmp_path / "README.md").write_text("not read")
    assert conversations(tmp_path) == [MESSAGES] * len(FORMATS)
    assert "test-00000.jsonl is not trained on" in caplog.text


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl.gz", gzip.compress(json.dumps(ALPACA).encode(), mtime=0)),
        ("a.json", b"\xef\xbb\xbf" + json.dumps(ALPACA).encode()),
        ("a.json", json.dumps(ALPACA).encode("utf-16")),
    ],
)
def test_compressed_files_and_other_encodings_are_read(
    tmp_path: Path, name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    assert conversations(tmp_path / name) == [MESSAGES]


def test_system_texts_inputs_and_tool_calls_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "my.jsonl"
    parts = [{"type": "python", "text": "1+1"}, {"type": "python_output", "text": "2"}]
    rows: list[Any] = [
        {"messages": [{"role": "developer", "content": "Be kind."}, *MESSAGES]},
        {"system": "Be kind.", "instruction": "Translate.", "input": "ja", "output": "yes"},
        [MESSAGES[0], {"role": "assistant", "content": parts}],
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    system = {"role": "system", "content": "Be kind."}
    assert conversations(path) == [
        [system, *MESSAGES],
        [
            system,
            {"role": "user", "content": "Translate.\n\nja"},
            {"role": "assistant", "content": "yes"},
        ],
        rows[2],
    ]


@needs_eval_data
def test_a_published_file_is_read() -> None:
    path = EVAL_DATA / "chat" / "identity_conversations.jsonl"
    assert conversations(path) == json_lines("chat/identity_conversations.jsonl")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("[]", "at least one message by the user"),
        ("17", "int is not a conversation; use"),
        ("null", "NoneType is not a conversation"),
        ("{}", r"among the keys \(none\)"),
        ('{"text": "a", "id": 3}', "no conversation among the keys 'text', 'id'; use"),
        ('{"messages": []}', "no conversation among the keys 'messages'"),
        ('["Hi"]', "str is not a conversation"),
        ('[{"role": "user"}]', "message 1 has the keys 'role'; it needs"),
        ('[{"speaker": "a"}]', "no conversation among the keys 'speaker'"),
        ('{"messages": [{"speaker": "a", "text": "b"}]}', "has the keys 'speaker', 'text'; it"),
        ('[{"role": "user", "content": null}]', "message 1 has the keys"),
        ('[{"role": "user", "content": [{"type": "text"}]}]', "content that is not text"),
        ('[{"role": "user", "content": [{"type": "image", "text": "x"}]}]', "of type 'image'"),
        ('[{"role": "tool", "content": "x"}]', "message 1 is by 'tool'; use one of system"),
        ('[{"role": ["x"], "content": "x"}]', r"message 1 is by \['x'\]"),
        ('[{"role": "user", "content": "Hi"}]', "no message by the assistant"),
        ('[{"role": "assistant", "content": "Hi"}]', "'user' is expected"),
        ('[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]',
         "message 2 has tool_calls or weight 0"),
        ('[{"role": "user", "content": "a"}, {"role": "assistant", "content": [{"type": "x",'
         ' "text": "y"}]}]', "type 'x'"),
        ('{"instruction": 1, "output": "x"}', "do not hold strings"),
        ("[" * 100_000, "not JSON"),
    ],
)  # fmt: skip
def test_an_invalid_conversation_is_named_with_file_line_and_keys(
    tmp_path: Path, line: str, message: str
) -> None:
    path = tmp_path / "my.jsonl"
    path.write_text(f"{json.dumps(MESSAGES)}\n{line}\n")
    with pytest.raises(UserError, match=rf"my\.jsonl:2: .*{message}"):
        CustomJSON(str(path))


def test_in_an_indented_array_the_line_of_the_invalid_item_is_named(tmp_path: Path) -> None:
    path = tmp_path / "my.json"
    path.write_text(json.dumps([ALPACA, {"text": "b"}], indent=1))
    with pytest.raises(UserError, match=r"my\.json:7: no conversation among the keys 'text'"):
        CustomJSON(str(path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "holds no conversation; use"),
        ("a.jsonl", '{"prompt": "\xe4"}'.encode("latin-1"), "a.jsonl:1: not UTF-8"),
        ("a.jsonl.gz", gzip.compress(b"{}", mtime=0)[:-9], "a.jsonl.gz "),
        ("a.parquet", b"PAR1", "a.parquet is damaged$"),
        ("readme.txt", b"Hello", "readme.txt:1: not JSON"),
    ],
)
def test_a_file_that_holds_no_conversations_is_named(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        CustomJSON(str(tmp_path / name))


def test_only_regular_files_of_a_folder_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").symlink_to("/dev/zero")
    (tmp_path / "c.jsonl").mkdir()
    with pytest.raises(UserError, match="has no file to train on"):
        CustomJSON(str(tmp_path))


def test_a_missing_file_and_a_folder_without_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.jsonl does not exist"):
        CustomJSON("nowhere.jsonl")
    with pytest.raises(UserError, match="has no file to train on whose name ends in"):
        CustomJSON(str(tmp_path))


# ---- what a run is made of


@pytest.mark.parametrize(
    ("options", "usual", "mixture"),
    [
        (Options(), "primer", "primer"),
        (Options(), "public", "public"),
        (Options(identity_file="x"), "primer", "primer"),
        (Options(conversations="x"), "public", "none"),
        (Options(conversations="x", mixture="primer"), "public", "primer"),
        (Options(identity_file="x", mixture="none"), "public", "none"),
        (Options(mixture="public"), "primer", "public"),
        (Options(conversations="x", mixture="primer", num_conversations=5), "public", "primer"),
    ],
)
def test_own_conversations_are_alone_or_mixed(options: Options, usual: str, mixture: str) -> None:
    assert chosen_mixture(options, usual) == mixture


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(mixture="none"), "--mixture=none leaves no conversations"),
        (Options(num_conversations=5), "--num_conversations has no effect: .* are public"),
        (Options(conversations="x", num_conversations=5), "--num_conversations has no effect"),
        (Options(conversations="x", eval_conversations=5), "--eval_conversations has no effect"),
    ],
)
def test_an_option_without_effect_is_an_error(options: Options, message: str) -> None:
    with pytest.raises(UserError, match=message):
        chosen_mixture(options, "public")


@pytest.mark.parametrize("name", ["num_conversations=20000", "eval_conversations=256"])
def test_an_option_without_effect_is_an_error_even_if_it_names_the_default(name: str) -> None:
    options = parse(Options, ["--conversations=x", f"--{name}"])
    assert options == Options(conversations="x")
    with pytest.raises(UserError, match="has no effect"):
        chosen_mixture(options, "public")


def test_both_files_are_read_and_a_missing_one_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "my.json"
    path.write_text(json.dumps(ALPACA))
    options = Options(conversations=str(path), identity_file=str(path))
    both = own_conversations(options, "none")
    assert [len(task) for task in both] == [1, 1] and both[0].digest() == both[1].digest()
    with pytest.raises(UserError, match="nowhere does not exist"):
        own_conversations(Options(identity_file="nowhere"), "primer")


def test_a_stage_trains_on_own_conversations_and_changed_ones_are_another_run(
    tmp_path: Path,
) -> None:
    save_small_run("base")
    path, runtime = tmp_path / "my.jsonl", init_runtime("cpu")

    def mixture_of(options: mid_train.Options | chat_sft.Options, setup: Setup) -> Task:
        script = mid_train if isinstance(options, mid_train.Options) else chat_sft
        return script.training_mixture(options, setup.mixture, setup.own)

    def setup(stage: str, options: mid_train.Options | chat_sft.Options) -> Setup:
        return start_from_parent(stage, options, runtime)

    path.write_text(json.dumps(ALPACA) * 3)
    alone = mid_train.Options(conversations=str(path))
    before = setup("mid", alone)
    assert before.mixture == "none" and len(mixture_of(alone, before)) == 6
    assert held_out_conversations(before.mixture, 256) is None
    mixed = mid_train.Options(identity_file=str(path), num_conversations=10)
    assert len(mixture_of(mixed, setup("mid", mixed))) == 16
    save_small_run("mid")
    finetuned = chat_sft.Options(conversations=str(path), mixture="primer", num_conversations=10)
    task = mixture_of(finetuned, setup("sft", finetuned))
    assert len(task) == 13 and sum(task[i] == {"messages": MESSAGES} for i in range(13)) == 3

    path.write_text(json.dumps(SHAREGPT) * 3)
    assert setup("mid", alone).settings == before.settings  # the same conversations
    path.write_text(json.dumps(ALPACA) * 4)
    assert setup("mid", alone).settings != before.settings
