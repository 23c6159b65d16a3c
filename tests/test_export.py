import errno
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from safetensors import safe_open

from nanochat import export
from nanochat.chat import merge_system, render_conversation, render_for_completion
from nanochat.engine import Engine
from nanochat.errors import UserError
from nanochat.gpt import GPT
from nanochat.tokenizer import SPECIAL_TOKENS, STYLE
from scripts import export as script
from scripts.options import InferenceOptions
from tests.shared_data import json_lines, needs_eval_data
from tests.small_model import save_small_run, small_model, small_tokenizer

transformers = pytest.importorskip("transformers", minversion="5.0")


@pytest.fixture(scope="module")
def model() -> GPT:
    return small_model(softcap=11.0, rope_base=5000.0, rms_eps=1e-5)


@pytest.fixture(scope="module")
def folder(model: GPT, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("export") / "model"
    export.export_hf(model, small_tokenizer(), out, torch.float32)
    return out


@pytest.fixture(scope="module")
def hf_tokenizer(folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder)


def read(folder: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / name).read_text(encoding="utf-8"))
    return content


# ---- weights and config


@pytest.mark.parametrize(
    "changes",
    [
        {"n_kv_head": 1},
        {"n_kv_head": 4, "softcap": 30.0},
        {"n_layer": 3, "rope_base": 200_000.0, "rms_eps": 1e-3},
    ],
)
def test_transformers_computes_bitwise_equal_logits(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    model, out = small_model(**changes), tmp_path / "model"
    export.export_hf(model, small_tokenizer(), out, torch.float32)
    hf_model = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert type(hf_model).__name__ == "NanoChatForCausalLM" and hf_model.dtype == torch.float32
    idx = torch.randint(400, (2, 50), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(hf_model(input_ids=idx).logits, model(idx))


@pytest.mark.parametrize(
    "changes",
    [
        {"value_embeddings": 1},
        {"value_embeddings": 2, "key_offset_heads": 1, "rotary_share": 0.5},
        {"key_offset_heads": 2},
        {"rotary_share": 0.25},
    ],
)
def test_a_model_that_transformers_lacks_comes_with_its_code(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    model, out = small_model(n_layer=3, **changes), tmp_path / "model"
    export.export_hf(model, small_tokenizer(), out, torch.float32)
    with pytest.raises(ValueError, match="trust_remote_code"):
        transformers.AutoModelForCausalLM.from_pretrained(out, trust_remote_code=False)
    hf_model = transformers.AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)
    assert "trust_remote_code=True" in (out / "README.md").read_text()
    idx = torch.randint(400, (2, 50), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(hf_model(input_ids=idx).logits, model(idx), atol=1e-5, rtol=1e-5)
    generated = hf_model.generate(idx[:1, :5], max_new_tokens=8, do_sample=False, eos_token_id=-1)
    engine = Engine(model, small_tokenizer())
    [completion] = engine.complete([idx[0, :5].tolist()], 8, temperature=0.0)
    expected = completion.tokens
    assert generated[0, 5 : 5 + len(expected)].tolist() == expected
    # In a batch with padding at the left every row is as alone.
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), idx[:1, :5]], dim=1)
    mask = (torch.arange(8) >= 3).long()[None]
    rows, masks = torch.cat([padded, idx[1:, :8]]), torch.cat([mask, torch.ones_like(mask)])
    both = hf_model.generate(
        rows, attention_mask=masks, max_new_tokens=8, do_sample=False, eos_token_id=-1
    )
    assert both[0, 8 : 8 + len(expected)].tolist() == expected


def test_bfloat16_weights_are_the_float32_weights_rounded(model: GPT, tmp_path: Path) -> None:
    out = tmp_path / "model"
    export.export_hf(model, small_tokenizer(), out, torch.bfloat16)
    assert read(out, "config.json")["dtype"] == "bfloat16"
    names = export.hf_tensors(model.state_dict(), model.config)
    with safe_open(out / export.WEIGHTS_FILE, "pt") as file:
        for name, tensor in names.items():
            assert torch.equal(file.get_tensor(name), tensor.to(torch.bfloat16))


def test_every_tensor_is_written_once_in_its_shape(model: GPT, folder: Path) -> None:
    with safe_open(folder / export.WEIGHTS_FILE, "pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        assert file.metadata() == {"format": "pt"}
    assert shapes == dict(export.hf_layout(model.config).values())
    assert len(shapes) == 6 * model.config.n_layer + 2


def test_every_key_of_the_config_is_written(model: GPT, folder: Path) -> None:
    written, shape = read(folder, "config.json"), model.config
    loaded = transformers.AutoConfig.from_pretrained(folder)
    expected = {
        "model_type": "nanochat", "vocab_size": shape.vocab_size, "hidden_size": shape.n_embd,
        "intermediate_size": 4 * shape.n_embd, "num_hidden_layers": shape.n_layer,
        "num_attention_heads": shape.n_head, "num_key_value_heads": shape.n_kv_head,
        "head_dim": shape.head_dim, "max_position_embeddings": shape.sequence_len,
        "hidden_act": "relu2", "rms_norm_eps": shape.rms_eps, "attention_bias": False,
        "attention_dropout": 0.0, "final_logit_softcapping": shape.softcap,
        "tie_word_embeddings": False, "bos_token_id": small_tokenizer().get_bos_token_id(),
        "eos_token_id": small_tokenizer().encode_special("<|assistant_end|>"),
    }  # fmt: skip
    for name, value in expected.items():
        assert written[name] == getattr(loaded, name) == value, name
    assert written["rope_theta"] == written["rope_parameters"]["rope_theta"] == shape.rope_base
    assert loaded.rope_parameters["rope_theta"] == shape.rope_base
    # Every key that transformers would write for this type of model.
    theirs = transformers.NanoChatConfig().to_dict().keys()
    about_the_model = theirs - transformers.PretrainedConfig().to_dict().keys()
    assert about_the_model <= written.keys()


def test_generation_stops_at_the_end_of_an_answer(folder: Path) -> None:
    config = transformers.GenerationConfig.from_pretrained(folder)
    special = small_tokenizer().encode_special
    assert config.eos_token_id == special("<|assistant_end|>")
    assert config.pad_token_id == special("<|output_end|>")
    assert config.bos_token_id == special("<|bos|>")


def test_generation_samples_like_the_server_and_up_to_the_context(folder: Path) -> None:
    config = transformers.GenerationConfig.from_pretrained(folder)
    assert InferenceOptions.temperature == 0 and not config.do_sample
    assert config.top_k == InferenceOptions.top_k
    assert config.max_length == 64  # transformers' default is 20


def test_a_base_model_ends_at_the_next_document(model: GPT, tmp_path: Path) -> None:
    out, special = tmp_path / "model", small_tokenizer().encode_special
    usage = export.Usage(is_chat=False, temperature=0.5)
    export.export_hf(model, small_tokenizer(), out, torch.float32, usage)
    config = transformers.GenerationConfig.from_pretrained(out)
    assert config.eos_token_id == special("<|bos|>") == read(out, "config.json")["eos_token_id"]
    assert config.do_sample and config.temperature == 0.5
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    assert tokenizer.eos_token == "<|bos|>" and tokenizer.chat_template is None


def test_batched_prompts_of_different_lengths_are_answered_as_alone(
    model: GPT, folder: Path, hf_tokenizer: Any
) -> None:
    hf_model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    prompts = ["The fox " * number for number in (1, 5, 2, 9)]
    batch = hf_tokenizer(prompts, return_tensors="pt", padding=True)
    batched = hf_model.generate(**batch, max_new_tokens=6)[:, batch["input_ids"].shape[1] :]
    ids = [small_tokenizer().encode(prompt, prepend="<|bos|>") for prompt in prompts]
    alone = Engine(model, small_tokenizer()).complete(ids, max_tokens=6)
    for theirs, ours in zip(batched.tolist(), alone, strict=True):
        assert theirs[: len(ours.tokens)] == ours.tokens


@pytest.mark.parametrize(
    ("source", "license_name"), [("climbmix", "cc-by-nc-4.0"), ("my_texts-1a2b", "other")]
)
def test_the_model_card_has_license_and_limits(source: str, license_name: str) -> None:
    card = export.model_card(small_model().config, export.Usage(name="tiny", source=source))
    assert card.startswith(f"---\nlicense: {license_name}\nlibrary_name: transformers\n")
    for words in ("# tiny", "context has 64 tokens", "Tools do not run", "users type are real"):
        assert words in card


# ---- models that cannot be exported


def test_an_unknown_tensor_is_rejected_and_nothing_is_written(tmp_path: Path) -> None:
    model, out = small_model(), tmp_path / "model"
    model.blocks[1].attention.gate = torch.nn.Linear(4, 4)
    with pytest.raises(UserError, match=r"blocks\.1\.attention\.gate"):
        export.export_hf(model, small_tokenizer(), out, torch.float32)
    assert list(tmp_path.iterdir()) == []


def test_a_model_with_windows_is_rejected_but_not_a_pattern_without_effect(
    tmp_path: Path,
) -> None:
    out = tmp_path / "model"
    with pytest.raises(UserError, match=r"window_pattern=SL.*not support; only --window"):
        export.export_hf(small_model(window_pattern="SL"), small_tokenizer(), out, torch.float32)
    assert list(tmp_path.iterdir()) == []
    export.export_hf(small_model(window_pattern="LS"), small_tokenizer(), out, torch.float32)


def test_a_missing_or_misshapen_tensor_is_rejected(tmp_path: Path) -> None:
    model = small_model()
    model.blocks[0].mlp.up.weight = torch.nn.Parameter(torch.zeros(96, 32))
    with pytest.raises(UserError, match=r"mlp\.fc1\.weight: \(96, 32\), expected \(128, 32\)"):
        export.export_hf(model, small_tokenizer(), tmp_path / "model", torch.float32)
    del model.blocks[0].mlp.up
    with pytest.raises(UserError, match=r"mlp\.fc1\.weight: None, expected"):
        export.export_hf(model, small_tokenizer(), tmp_path / "model", torch.float32)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_field_of_the_config_is_rejected(
    model: GPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = model.config.to_dict()
    monkeypatch.setattr(
        type(model.config), "to_dict", lambda _: {**known, "multi_token_heads": True}
    )
    with pytest.raises(UserError, match=r"multi_token_heads.*not support"):
        export.hf_config(model.config, small_tokenizer(), torch.float32)


def test_a_tokenizer_of_another_size_is_rejected(tmp_path: Path) -> None:
    model = small_model(vocab_size=500)
    with pytest.raises(UserError, match="the model has 500 tokens and the tokenizer 400"):
        export.export_hf(model, small_tokenizer(), tmp_path / "model", torch.float32)


def test_an_existing_folder_is_not_touched(model: GPT, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(UserError, match="already exists"):
        export.export_hf(model, small_tokenizer(), tmp_path / "model", torch.float32)
    assert list((tmp_path / "model").iterdir()) == []


def test_a_failed_write_leaves_nothing(
    model: GPT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disk_full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(UserError, match=r"^the disk is full: .*model was not written"):
        export.export_hf(model, small_tokenizer(), tmp_path / "model", torch.float32)
    assert list(tmp_path.iterdir()) == []


# ---- the tokenizer


TEXTS = [
    "", " ", "\n\n", "Hello, world!", "12345 67 8", "naïve café \u20ac \U0001f642\U0001f469\u200d",
    "  two  spaces\tand tabs\r\n", "日本語 한국어 العربية", "\x00\x01 control", "a" * 100,
    "don't we'll I'M", "x=1;y+=2 // code", "\ufffd\u2028",
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_the_exported_tokenizer_round_trips_with_our_ids(
    folder: Path, hf_tokenizer: Any, text: str
) -> None:
    ids = small_tokenizer().encode(text)
    assert hf_tokenizer.encode(text, add_special_tokens=False) == ids
    with_bos = [small_tokenizer().get_bos_token_id(), *ids]
    assert hf_tokenizer.encode(text) == with_bos
    assert (
        tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids == with_bos
    )
    assert hf_tokenizer.decode(ids) == text


@needs_eval_data
def test_real_text_gets_the_same_ids(hf_tokenizer: Any) -> None:
    texts = [row["question"] + row["answer"] for row in json_lines("gsm8k/test.jsonl")[:100]]
    texts += [
        str(row)
        for row in json_lines("eval_data/language_understanding/lambada_openai.jsonl")[:100]
    ]
    ids = hf_tokenizer(texts, add_special_tokens=False)["input_ids"]
    assert ids == small_tokenizer().encode(texts)


def test_special_tokens_have_the_same_ids_and_their_roles(hf_tokenizer: Any) -> None:
    for name in SPECIAL_TOKENS:
        assert hf_tokenizer.convert_tokens_to_ids(name) == small_tokenizer().encode_special(name)
        assert name in hf_tokenizer.all_special_tokens
    assert hf_tokenizer.bos_token == "<|bos|>"
    assert hf_tokenizer.eos_token == "<|assistant_end|>"
    assert hf_tokenizer.pad_token == "<|output_end|>"  # the end of an answer is no padding
    assert len(hf_tokenizer) == small_tokenizer().get_vocab_size()
    assert hf_tokenizer.model_max_length == 64


# ---- the chat template

CALL = [
    {"type": "text", "text": "Let me see. "},
    {"type": "python", "text": "3+4"},
    {"type": "python_output", "text": "7"},
    {"type": "text", "text": "It is 7."},
]
USER, ANSWER = {"role": "user", "content": "Hi,\n you"}, {"role": "assistant", "content": " Yes. "}
PARTS = {
    "role": "user",
    "content": [{"type": "text", "text": "a "}, {"type": "text", "text": " b"}],
}
CONVERSATIONS = [
    [USER],
    [PARTS],
    [USER, ANSWER, PARTS],
    [USER, {"role": "assistant", "content": CALL}, USER],
    [{"role": "system", "content": "Be kind.\n"}, USER],
    [
        {"role": "system", "content": "One."},
        {"role": "system", "content": "Two."},
        PARTS,
        ANSWER,
        USER,
    ],
    [{"role": "system", "content": ""}, USER],
    [USER, {"role": "assistant", "content": ""}, USER],
    [{"role": "user", "content": ""}],
    [{"role": "user", "content": "{{ 1 + 1 }} {% if x %}"}],
]


@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_the_chat_template_renders_the_same_prompt(
    hf_tokenizer: Any, messages: list[dict[str, Any]]
) -> None:
    rendered = hf_tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    ours = render_for_completion({"messages": messages}, small_tokenizer())
    assert rendered["input_ids"] == ours


@pytest.mark.parametrize("messages", [[*c, ANSWER] for c in CONVERSATIONS])
def test_the_chat_template_renders_the_same_conversation_and_mask(
    hf_tokenizer: Any, messages: list[dict[str, Any]]
) -> None:
    rendered = hf_tokenizer.apply_chat_template(
        messages, return_dict=True, return_assistant_tokens_mask=True
    )
    ids, mask = render_conversation({"messages": messages}, small_tokenizer())
    assert rendered["input_ids"] == ids
    assert rendered["assistant_masks"] == mask


@pytest.mark.parametrize("styles", [STYLE[:1], STYLE[1:], STYLE])
def test_the_chat_template_writes_messages_in_the_style_of_the_tokenizer(
    model: GPT, tmp_path: Path, styles: tuple[str, ...]
) -> None:
    tokenizer, out = small_tokenizer.__wrapped__(), tmp_path / "model"
    for name in styles:
        setattr(tokenizer, name, True)
    export.export_hf(model, tokenizer, out, torch.float32)
    theirs = transformers.AutoTokenizer.from_pretrained(out)
    parts = [{"type": kind, "text": text} for kind, text in (
        ("text", ""), ("text", "So"), ("text", "it is"), ("python", "a + 1"),
        ("python_output", "x"), ("text", "7"), ("text", "it is"), ("python", "b"), ("text", "no"),
    )]  # fmt: skip
    words = "Is  the PIG, or I,\nAN ÉLAN? "
    for text in ("WHO IS IT?", "Who IS it?", "ÉTÉ 7", "7", "", " a", "日本", words):
        messages = [{"role": "user", "content": text}, {"role": "assistant", "content": parts}]
        messages += [{"role": "user", "content": "OK?"}, {"role": "assistant", "content": text}]
        rendered = theirs.apply_chat_template(
            messages, return_dict=True, return_assistant_tokens_mask=True
        )
        ids, mask = render_conversation({"messages": messages}, tokenizer)
        assert rendered["input_ids"] == ids and rendered["assistant_masks"] == mask


def test_300_conversations_have_the_same_ids_and_mask(hf_tokenizer: Any) -> None:
    """With characters of many tokens at every border, and texts in several parts."""
    rng = random.Random(0)
    words = ["Hi", " you", "\U0001f642", "\U0001f469\u200d", "日本", "", "\n", " ", "12", "é"]

    def text() -> str:
        return "".join(rng.choices(words, k=rng.randint(0, 3)))

    for _ in range(300):
        messages: list[dict[str, Any]] = []
        for _ in range(rng.randint(1, 3)):
            parts = []
            kinds = ["text", "text", "python", "python_output"]  # also an output without a call
            for kind in rng.choices(kinds, k=rng.randint(0, 4)):
                parts.append({"type": kind, "text": text()})
                if kind == "python" and rng.random() < 0.8:
                    parts.append({"type": "python_output", "text": text()})
            messages.append({"role": "user", "content": text()})
            messages.append({"role": "assistant", "content": parts})
        rendered = hf_tokenizer.apply_chat_template(
            messages, return_dict=True, return_assistant_tokens_mask=True
        )
        ids, mask = render_conversation({"messages": messages}, small_tokenizer())
        assert (rendered["input_ids"], rendered["assistant_masks"]) == (ids, mask), messages


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [ANSWER],
        [USER, USER],
        [USER, ANSWER, ANSWER],
        [{"role": "system", "content": "S"}],
        [{"role": "system", "content": "S"}, ANSWER],
        [USER, {"role": "system", "content": "S"}],
        [USER, {"role": "assistant", "content": [{"type": "image", "text": "x"}]}, USER],
    ],
)
def test_the_chat_template_rejects_invalid_conversations_too(
    hf_tokenizer: Any, messages: list[dict[str, Any]]
) -> None:
    with pytest.raises(UserError):
        render_conversation({"messages": messages}, small_tokenizer())
    with pytest.raises(Exception, match=r"take turns|a user message|parts are|empty"):
        hf_tokenizer.apply_chat_template(messages)


def test_a_developer_message_is_merged_like_a_system_message(hf_tokenizer: Any) -> None:
    texts = [
        hf_tokenizer.apply_chat_template([{"role": role, "content": "S"}, USER], tokenize=False)
        for role in ("system", "developer")
    ]
    merged = merge_system([{"role": "system", "content": "S"}, USER])[0]["content"]
    assert texts[0] == texts[1] == f"<|bos|><|user_start|>{merged}<|user_end|>"


# ---- scripts.export


def test_the_command_exports_the_model_of_a_stage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_small_run("sft")
    script.main(["--source=sft", "--format=hf", f"--out={tmp_path / 'out'}"])
    assert capsys.readouterr().out.strip() == str(tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json", "chat_template.jinja", "README.md",
    }  # fmt: skip
    hf_model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    idx = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        assert torch.equal(hf_model(input_ids=idx).logits, model(idx))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--out=DIR is required"),
        (["--format=mlx", "--out=x"], "--format=mlx is not one of hf"),
        (["--source=rl", "--out=x"], r"no checkpoint in .*; run python -m scripts\.chat_rl first"),
    ],
)
def test_the_command_rejects_what_it_cannot_export(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        script.main(arguments)
