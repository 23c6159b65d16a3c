"""`scripts.show_data` shows the rows of training, with the loss mask as a color or as marks."""

import re

import pytest

from nanochat import dataset, paths, primer
from nanochat.data.chat_batches import ShuffledConversations
from scripts import chat_sft, show_data
from tasks.customjson import CustomJSON
from tests.small_model import small_tokenizer

STAGES = ("base", "mid", "sft", "rl")


@pytest.fixture(autouse=True)
def world(monkeypatch: pytest.MonkeyPatch) -> None:
    """The primer world, small, with a tokenizer; no model."""
    monkeypatch.setattr(dataset, "PRIMER_SHARD_DOCUMENTS", 40)
    monkeypatch.setattr(dataset, "PRIMER_VAL_DOCUMENTS", 10)
    dataset.main(["--source=primer", "-n", "1"])
    small_tokenizer().save(paths.tokenizer_dir())


def shown(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    capsys.readouterr()
    show_data.main([*options, "--num=2", "--max_seq_len=128"])
    return capsys.readouterr().out


@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_is_shown_in_color_and_with_marks(
    capsys: pytest.CaptureFixture[str], stage: str
) -> None:
    plain = shown(capsys, f"--stage={stage}", "--color=never")
    assert f"{stage} 1: " in plain and f"{stage} 2: " in plain and "\x1b" not in plain
    assert ("<|user_start|>" in plain) == (stage != "base")
    marked = re.findall("«(.*?)»", plain, re.DOTALL)
    if stage in ("sft", "rl"):  # the assistant's tokens alone count
        assert not any("<|user_end|>" in one for one in marked)
        assert all("<|assistant_end|>" in one or "<|python_end|>" in one for one in marked)
    colored = shown(capsys, f"--stage={stage}", "--color=always")
    assert "\x1b[32m" in colored and "«" not in colored


def test_marked_are_the_tokens_of_the_loss_mask() -> None:
    options = show_data.Options(stage="sft", num=20, max_seq_len=256)
    rows = list(show_data.rows_of(options, small_tokenizer()))
    mixture = chat_sft.training_mixture(chat_sft.Options(), "primer", [])
    conversations = ShuffledConversations(mixture, small_tokenizer(), options.seed)
    expected = [conversations.render(number) for number in range(20)]
    by_ids = {tuple(ids[:257]): mask[:257] for ids, mask in expected}
    assert len(rows) == 20
    for row in rows:
        ids, counted = zip(*row, strict=True)
        assert list(map(int, counted)) == by_ids[ids]


def test_own_conversations_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    path = paths.base_dir() / "own.json"
    path.write_text('{"prompt": "Which tide?", "completion": "The spring tide."}\n' * 2)
    assert len(CustomJSON(str(path))) == 2
    text = shown(capsys, "--stage=sft", f"--conversations={path}", "--color=never")
    assert text.count("«The spring tide.<|assistant_end|>»") == 2
    assert primer.document(0, 0) not in text
