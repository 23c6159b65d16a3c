import torch

from nanochat.gpt import GPT, GPTConfig
from nanochat.training import param_groups, run_summary
from nanochat.training.memory_estimate import estimate
from nanochat.training.schedule import Schedule


def table() -> dict[str, str]:
    """The summary of a model on the meta device."""
    config = GPTConfig.from_depth(12, vocab_size=65_536, sequence_len=2048)
    with torch.device("meta"):
        model = GPT(config)
    schedule = Schedule(num_steps=1000, warmup_steps=100, warmdown_share=0.4, final=0.1)
    rates = param_groups.scaled_rates(
        config, matrix_lr=0.02, embedding_lr=0.2, unembedding_lr=0.004, weight_decay=0.1
    )
    guess = estimate(config, rows=32, compute_dtype=torch.bfloat16, device_type="cuda")
    return dict(
        run_summary.of_model(model)
        + run_summary.of_steps(model, schedule, 256, 8)
        + run_summary.of_rates(schedule, rates)
        + run_summary.of_memory(32, 32, guess)
    )


def test_the_table_shows_size_horizon_and_schedule() -> None:
    summary = table()
    assert summary["model"] == "depth 12, width 768, 6 heads of 128"
    assert summary["steps"] == "1,000 of 524,288 tokens: 256 rows, 8 ranks"
    assert summary["horizon"] == "524,288,000 tokens, 2.82 per parameter (of all)"
    assert summary["learning rates"].startswith("matrices 0.02, embedding 0.2,")
    phases = "warmup 100, plateau 500, warmdown 400 steps, to 0.1"
    assert summary["learning-rate schedule"] == phases
    assert summary["multiplier at step"].endswith("1,000: 0.102")
    assert summary["micro-batch"] == "32 rows, at most 1 per step and rank"
    assert "activations" in summary["memory, estimated"]


def test_windows_have_a_separate_row() -> None:
    shape = {"vocab_size": 100, "sequence_len": 1024}
    where = torch.device("cpu"), torch.float32
    plain, windowed = (
        run_summary.of_attention(GPTConfig.from_depth(4, window_pattern=pattern, **shape), *where)
        for pattern in ("L", "SSSL")
    )
    fused = "scaled_dot_product_attention, flash attention"
    assert plain == [("attention", fused)]
    layers = "SSSL: 3 of 4 layers see 512 tokens"
    assert windowed == [*plain, ("windows", f"{layers}; {fused}, in blocks of 256 tokens")]


def test_values_are_aligned() -> None:
    lines = run_summary.as_lines([("a", "one"), ("long name", "two")])
    assert lines == ["  a          one", "  long name  two"]
