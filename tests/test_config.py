import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat import checkpoint_manager, paths, primer
from nanochat.data import chat_batches, hub_files
from nanochat.dataloader import tokenizing_distributed_data_loader
from nanochat.errors import UserError
from nanochat.runtime import init_runtime
from nanochat.training.config import Plan
from scripts.mid_train import Options
from scripts.options import LoopOptions
from scripts.training import default_eval_tokens, is_finished, start_from_parent
from tasks.primer import Primer
from tests.small_model import save_small_run, small_tokenizer
from tests.word_list import put_word_list


@pytest.mark.parametrize(("rows", "world_size"), [(8, 1), (8, 3), (8, 8), (32, 24), (43, 6)])
def test_a_rank_has_at_most_as_many_rows_as_the_plan_says(rows: int, world_size: int) -> None:
    shape = {"rows": rows, "sequence_len": 32, "world_size": world_size}
    texts = [primer.document(seed=0, index=i) for i in range(50)]
    packed, masked = [], []
    for rank in range(world_size):
        packed += tokenizing_distributed_data_loader(
            texts, small_tokenizer(), num_steps=1, num_threads=1, rank=rank, **shape
        )
        masked += chat_batches.masked_conversations(
            Primer("train", stage="sft", size=rows), small_tokenizer(), num_epochs=1, seed=0,
            rank=rank, **shape,
        )  # fmt: skip
    values: dict[str, Any] = {field.name: None for field in dataclasses.fields(Plan)}
    most = Plan(**{**values, "rows": rows}).rank_rows(world_size)
    assert max(len(batch.inputs) for batch in packed) == most
    assert {len(batch.inputs) for batch in masked} == {most}


def save_run(settings: dict[str, Any], finished: bool, stage: str = "base") -> None:
    meta = {"settings": settings, "finished": finished, "loader": {"step": 1}}
    content = {"model": {"weight": torch.zeros(1)}}
    checkpoint_manager.save(paths.checkpoints_dir(stage) / "d1", 1, content, meta, keep=1)


def test_a_run_is_finished_resumable_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    caplog.set_level("INFO")
    settings, options = {"total_batch_size": 4096, "seed": 1}, LoopOptions()
    assert not is_finished("base", "d1", settings, options)  # nothing there
    save_run(settings, finished=False)
    assert not is_finished("base", "d1", settings, options)
    save_run(settings, finished=True)
    assert is_finished("base", "d1", settings, options)
    assert "Pretraining is finished: step 1 in" in caplog.text
    with pytest.raises(UserError, match=r"\(total_batch_size: saved 4096, now 2048\)"):
        is_finished("base", "d1", {**settings, "total_batch_size": 2048}, options)


def test_a_run_is_not_continued_with_another_list_of_words() -> None:
    save_small_run("base")
    paths.write_atomic(paths.base_dir() / "data" / "source.json", '{"source": "fineweb-edu"}')
    words, options = put_word_list(), Options()

    def settings() -> dict[str, Any]:
        return start_from_parent("mid", options, init_runtime("cpu")).settings

    save_run(settings(), finished=False, stage="mid")
    assert not is_finished("mid", "d1", settings(), options)  # it can be resumed
    hub_files.word_list_path().unlink()
    hub_files.word_list_path().write_text("\n".join(words[1:]))
    hub_files._read_words.cache_clear()  # as in another process
    with pytest.raises(UserError, match=r"other settings \(words: saved \w{16}, now \w{16}\)"):
        is_finished("mid", "d1", settings(), options)


def test_a_run_from_before_an_option_existed_had_its_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    save_run({"eval_conversations": 16}, finished=True)  # which once defined a run
    assert is_finished("base", "d1", {"seed": 42}, LoopOptions())
    with pytest.raises(UserError, match=r"\(seed: saved 42, now 1\)"):
        is_finished("base", "d1", {"seed": 1}, LoopOptions())


def test_settings_survive_json() -> None:
    settings = vars(LoopOptions())
    assert json.loads(json.dumps(settings)) == settings


@pytest.mark.parametrize(
    ("device_type", "train_tokens", "eval_tokens"),
    [
        ("cpu", 10**10, (65_536, 65_536)),
        ("mps", 10**10, (65_536, 65_536)),
        ("cuda", 10**10, (10_485_760, 10_485_760)),
        ("cuda", 100_000_000, (1_000_000, 10_485_760)),  # a hundredth
        ("cuda", 10_000, (65_536, 10_485_760)),
    ],
)
def test_validation_on_a_gpu_reads_ten_million_tokens_at_the_end_and_a_small_share_before(
    device_type: str, train_tokens: int, eval_tokens: tuple[int, int]
) -> None:
    assert default_eval_tokens(device_type, train_tokens) == eval_tokens
