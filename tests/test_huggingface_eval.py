import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from nanochat import core_eval, report
from nanochat.core_eval import CoreTask
from nanochat.engine import Engine
from nanochat.errors import UserError
from nanochat.export import export_hf
from nanochat.runtime import Runtime
from scripts import base_eval
from scripts.huggingface import HuggingFaceModel, load_huggingface
from tests.reference import core as plain
from tests.shared_data import EVAL_DATA, needs_eval_data
from tests.small_model import save_small_run, small_model, small_tokenizer

transformers: Any = pytest.importorskip(
    "transformers", reason="needs transformers, which the extra eval installs"
)
RUNTIME = Runtime(torch.device("cpu"), 0, 1, torch.float32)
LABELS = ("copa", "winograd", "bigbench_operators", "agi_eval_lsat_ar", "bigbench_dyck_languages")
NUM_ITEMS = 8


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny GPT-2 of random weights and a tokenizer as its: no <|bos|>, one end."""
    folder = tmp_path_factory.mktemp("hub") / "tiny-gpt2"
    backend = small_tokenizer().huggingface_backend()
    backend.add_special_tokens(["<|endoftext|>"])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|endoftext|>", model_max_length=160
    )
    tokenizer.save_pretrained(folder)
    config = transformers.GPT2Config(
        vocab_size=len(tokenizer), n_positions=160, n_embd=16, n_layer=2, n_head=2,
        bos_token_id=tokenizer.eos_token_id, eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.5,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def tasks() -> list[CoreTask]:
    return [task for task in core_eval.core_tasks() if task.label in LABELS]


def one_at_a_time(model: Any, tokenizer: Any, task: CoreTask, items: Any, index: int) -> int:
    """The prediction by the obvious loop over full sequences."""
    texts = plain.texts_of(task, items, index)
    rows = [[tokenizer.eos_token_id, *tokenizer.encode(text)] for text in texts]
    if task.kind == "schema":
        num_equal = plain.equal_tokens([row[::-1] for row in rows])
        starts = [len(row) - num_equal for row in rows]
    else:
        starts = [plain.equal_tokens(rows)] * len(rows)
    if task.kind == "language_modeling":
        rows, starts = rows[1:], starts[1:]
    means, match = [], True
    for row, start in zip(rows, starts, strict=True):
        cut = max(0, len(row) - 160)
        row, start = row[cut:], max(1, start - cut)
        with torch.no_grad():
            logits = model(torch.tensor([row])).logits[0]
        losses = F.cross_entropy(logits[start - 1 : -1], torch.tensor(row[start:]))
        means.append(float(losses))
        match = logits[start - 1 : -1].argmax(dim=1).tolist() == row[start:]
    if task.kind == "language_modeling":
        return 0 if match else -1
    return means.index(min(means))


@needs_eval_data
def test_predictions_are_those_of_a_loop_over_the_model(gpt2: Path) -> None:
    subject = load_huggingface(str(gpt2), RUNTIME, tokens_per_pass=700)
    model = transformers.AutoModelForCausalLM.from_pretrained(gpt2).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(gpt2)
    assert (subject.limit, subject.bos) == (160, tokenizer.eos_token_id)
    for task in tasks():
        items = core_eval.read_items(EVAL_DATA, task)
        indices = range(NUM_ITEMS)
        problems = core_eval.make_problems(task, items, indices, subject.encode, subject.limit)
        found = core_eval.predictions(problems, subject.logits_at, 2048)
        expected = [one_at_a_time(model, tokenizer, task, items, i) for i in indices]
        assert found == expected, task.label


@torch.no_grad()
def test_logits_at_positions_of_rows_that_share_a_prefix(gpt2: Path) -> None:
    subject = load_huggingface(str(gpt2), RUNTIME, tokens_per_pass=12)
    rows = [((5, 6, 7), (8,), (9, 10, 11)), ((1, 2), ()), ((3, 4), (), (5,))]
    expected = torch.cat([
        subject.model(torch.tensor([[5, 6, 7, 8]])).logits[0],
        subject.model(torch.tensor([[5, 6, 7, 9, 10, 11]])).logits[0, 3:],
        subject.model(torch.tensor([[1, 2]])).logits[0],
        subject.model(torch.tensor([[3, 4, 5]])).logits[0],
    ])  # fmt: skip
    at = torch.tensor([11, 0, 3, 4, 6, 7, 8, 2, 2])
    torch.testing.assert_close(subject.logits_at(rows, at), expected[at])


@needs_eval_data
def test_an_exported_model_scores_as_the_native_one(tmp_path: Path) -> None:
    model, tokenizer = small_model(seed=2, sequence_len=256), small_tokenizer()
    export_hf(model, tokenizer, tmp_path / "exported", torch.float32)
    subject = load_huggingface(str(tmp_path / "exported"), RUNTIME, tokens_per_pass=2048)
    assert subject.limit == 256
    encode, engine = partial(tokenizer.encode, prepend="<|bos|>"), Engine(model, tokenizer)
    for task in tasks():
        items = core_eval.read_items(EVAL_DATA, task)
        ours, theirs = (
            core_eval.make_problems(task, items, range(NUM_ITEMS), encoder, 256)
            for encoder in (encode, subject.encode)
        )
        assert ours == theirs
        expected = core_eval.predictions(ours, engine.logits_at, 2048)
        assert core_eval.predictions(theirs, subject.logits_at, 2048) == expected, task.label


@needs_eval_data
def test_the_command_evaluates_a_folder_and_leaves_the_report_of_our_model_alone(
    gpt2: Path, base_dir: Path
) -> None:
    argv = [f"--hf_path={gpt2}", f"--bundle={EVAL_DATA}", "--max_per_task=1", "--device_type=cpu"]
    base_eval.main(argv)  # needs no text, tokenizer or checkpoint of ours
    [path] = (base_dir / "base_eval").glob("*tiny-gpt2.csv")
    assert len(path.read_text(encoding="utf-8").splitlines()) == 24
    assert report.read_section("base_eval") is None
    section = report.read_section(f"base_eval_{path.stem}")
    assert section is not None and section["complete"] and not section["column"]


def test_a_model_that_cannot_be_loaded_is_one_line(
    tmp_path: Path, base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError) as caught:
        load_huggingface(str(tmp_path), RUNTIME, 100)
    assert str(caught.value).startswith(f"--hf_path={tmp_path} could not be loaded: ")
    assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match="install it with: uv sync --extra eval"):
        load_huggingface(str(tmp_path), RUNTIME, 100)


def test_without_a_token_for_the_beginning_there_is_none(gpt2: Path) -> None:
    loaded = load_huggingface(str(gpt2), RUNTIME, 100)
    loaded.tokenizer.eos_token = None
    subject = HuggingFaceModel(loaded.model, loaded.tokenizer, 100)
    assert subject.encode(["One"]) == [ids[1:] for ids in loaded.encode(["One"])]


def test_problems_of_another_save_are_measured_again(base_dir: Path) -> None:
    save_small_run("base")
    before = base_eval.huggingface_identity(str(base_dir))
    assert base_eval.huggingface_identity("openai-community/gpt2") == "openai-community/gpt2"
    (base_dir / "config.json").write_text("{}")
    assert base_eval.huggingface_identity(str(base_dir)) != before
