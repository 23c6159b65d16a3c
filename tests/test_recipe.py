"""The published recipe as published: what `--dry_run` of the reference runs prints."""

import pytest
import torch

from nanochat import paths
from nanochat.configurator import parse
from nanochat.training import param_groups
from scripts import base_train, chat_rl, chat_sft, mid_train
from tests import small_model


class FullVocabulary:
    """The small tokenizer with the number of tokens of the reference runs."""

    def __getattr__(self, name: str) -> object:
        return getattr(small_model.small_tokenizer(), name)

    def get_vocab_size(self) -> int:
        return 65_536


@pytest.fixture(autouse=True)
def world(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tokenizer of 65,536 tokens, and a text that claims to be fineweb-edu."""
    small_model.save_small_run("base")
    monkeypatch.setattr(base_train, "get_tokenizer", FullVocabulary)
    monkeypatch.setattr("nanochat.dataset.open_documents", lambda source, split: ["text"])
    monkeypatch.setattr(base_train, "text_rows", lambda *_: [])  # which reads the real text
    monkeypatch.setattr("nanochat.dataset.text_digest", lambda source: "0" * 16)
    path = paths.base_dir() / "data" / "source.json"
    paths.write_atomic(path, '{"source": "fineweb-edu"}')


@pytest.mark.parametrize(
    ("depth", "parameters", "tokens", "steps", "shards", "hours"),
    [
        (20, "560,988,160", "11,219,763,200", "21,400", "216", "2.8"),
        (26, "1,081,999,360", "21,639,987,200", "41,275", "416", "10.5"),
        (32, "1,879,048,192", "37,580,963,840", "71,680", "722", "31.9"),
    ],
)
def test_a_dry_run_prints_the_published_numbers(
    depth: int, parameters: str, tokens: str, steps: str, shards: str, hours: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    base_train.main([f"--depth={depth}", "--recipe=classic", "--dry_run", "--device_type=cpu"])
    printed = capsys.readouterr().err
    for words in (
        f"total {parameters}\n",
        f"{tokens} tokens, 20.00 per parameter",
        f"{steps} of 524,288 tokens: 256 rows",
        f"characters, {shards} shards",
        f"{hours} h on 8 x H100 at 50% MFU",
        "gradient norm           at most 1",
    ):
        assert words in printed, words
    width = 64 * depth
    scale = (width / 768) ** -0.5
    rates = f"matrices 0.02, embedding {0.3 * scale:.4g}, unembedding {0.004 * scale:.4g}"
    assert rates in printed
    num_steps = int(steps.replace(",", ""))
    warmdown = round(0.2 * num_steps)
    assert f"plateau {num_steps - warmdown:,}, warmdown {warmdown:,} steps, to 0" in printed


def test_options_default_to_the_recipe_and_override_it() -> None:
    options = base_train.with_recipe(parse(base_train.Options, ["--recipe=modern"]))
    assert (options.value_embeddings, options.matrix_lr) == (2, -1)  # -1: the recipe's rate
    assert options.sampled_softmax_share == 0.85
    given = ["--recipe=modern", "--value_embeddings=0", "--matrix_lr=0.5"]
    options = base_train.with_recipe(parse(base_train.Options, given))
    assert (options.value_embeddings, options.matrix_lr) == (0, 0.5)


def test_the_classic_recipe_is_what_the_options_default_to() -> None:
    """Their help shows these defaults."""
    options = parse(base_train.Options, [])
    assert base_train.with_recipe(options) == options


def test_a_dry_run_of_the_modern_recipe_has_value_embeddings(
    capsys: pytest.CaptureFixture[str],
) -> None:
    base_train.main(["--depth=20", "--recipe=modern", "--dry_run", "--device_type=cpu"])
    printed = capsys.readouterr().err
    assert "value embeddings 838,860,800" in printed  # 10 tables of 65,536 x 1,280
    # The horizon is that of the classic recipe, not longer by 20 tokens for each value.
    assert "11,219,763,200 tokens, 20.00 per parameter (of all but value embeddings)" in printed
    assert "over about 2,286 of 65,536 tokens in the first 18,190 steps" in printed


def test_the_later_stages_have_the_published_settings() -> None:
    mid, sft, rl = mid_train.Options(), chat_sft.Options(), chat_rl.Options()
    assert (mid.total_batch_size, mid.init_lr, mid.warmdown_share) == (524_288, 1.0, 0.2)
    assert (sft.rows_per_step, sft.init_lr, sft.num_epochs) == (32, 0.02, 1)
    assert (rl.prompts_per_step, rl.num_samples, rl.init_lr) == (16, 16, 0.05)
    assert (rl.max_new_tokens, rl.temperature, rl.top_k) == (256, 1.0, 50)
    for options in (mid, sft, rl):
        assert options.recipe == "classic" and options.weight_decay == 0.0
        assert options.matrix_lr == options.embedding_lr == options.unembedding_lr == -1


def test_a_gradient_above_the_limit_is_scaled_to_it_on_the_way_to_the_optimizers() -> None:
    """Twice the gradient at half the scale gives equal weights and moments."""
    after = []
    for factor in (1.0, 2.0):
        model = small_model.small_model()
        optimizers = param_groups.build_optimizers(model)
        for parameter in model.parameters():
            generator = torch.Generator().manual_seed(parameter.numel())
            parameter.grad = factor * torch.randn(parameter.shape, generator=generator)
        for optimizer in optimizers:
            optimizer.step(1 / factor)
        after.append([parameter.detach().clone() for parameter in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*after, strict=True))
