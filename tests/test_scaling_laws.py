import pytest

from nanochat.errors import UserError
from nanochat.training import scaling_laws


def test_the_horizon_is_by_flops_when_they_are_given() -> None:
    given = {"num_parameters": 100, "flops_per_token": 10.0, "tokens_per_parameter": 20.0}
    assert scaling_laws.horizon_tokens(**given, target_flops=1e6) == 100_000
    assert scaling_laws.horizon_tokens(**given) == 2000


def test_an_empty_horizon_is_rejected_with_the_remedy() -> None:
    with pytest.raises(UserError, match=r"tokens_per_parameter=0.*num_iterations"):
        scaling_laws.horizon_tokens(num_parameters=1, flops_per_token=1.0, tokens_per_parameter=0)


@pytest.mark.parametrize("name", ["tokens_per_parameter", "target_flops"])
def test_a_horizon_beyond_64_bits_is_rejected(name: str) -> None:
    with pytest.raises(UserError, match=rf"--{name}=1e\+308 gives .* tokens; use less"):
        scaling_laws.horizon_tokens(num_parameters=10**9, flops_per_token=0.5, **{name: 1e308})


@pytest.mark.parametrize("factor", [1, 3, 50])
def test_the_batch_is_half_a_million_tokens_from_a_billion_on(factor: int) -> None:
    budget = factor * scaling_laws.RECIPE_BUDGET_TOKENS
    assert scaling_laws.batch_tokens(budget, 2048) == 2**19


@pytest.mark.parametrize(
    ("batch_share", "scale"), [(1.0, 1.0), (4.0, 2.0), (0.5, 0.5**0.5), (0.25, 0.5), (0.01, 0.5)]
)
def test_rates_that_are_not_given_follow_the_batch_size(batch_share: float, scale: float) -> None:
    given = {"matrix_lr": -1.0, "embedding_lr": 0.7, "unembedding_lr": -1.0}
    rates = scaling_laws.rates("classic", given, batch_share)
    assert rates["embedding_lr"] == 0.7
    assert rates["matrix_lr"] == pytest.approx(0.02 * scale)
    assert rates["unembedding_lr"] == pytest.approx(0.004 * scale)


def test_the_batch_grows_with_the_budget_in_whole_rows() -> None:
    sizes = [scaling_laws.batch_tokens(10**exponent, 512) for exponent in range(4, 12)]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]
    assert all(size % 512 == 0 for size in sizes)


def test_a_batch_size_that_does_not_divide_is_rejected_with_one_that_does() -> None:
    with pytest.raises(UserError, match=r"total_batch_size=1000 .* 128 .*try 1024"):
        scaling_laws.global_rows(1000, 128, 4)
    with pytest.raises(UserError, match=r"total_batch_size=100 .* 128 .*try 512"):
        scaling_laws.global_rows(100, 128, 4)


@pytest.mark.parametrize("world_size", [1, 3, 4, 6, 8])
def test_a_batch_is_split_over_any_number_of_ranks_with_a_row_each(world_size: int) -> None:
    assert scaling_laws.global_rows(1024, 128, world_size) == 8


def test_fewer_rows_than_ranks_are_rejected_with_both_remedies() -> None:
    with pytest.raises(UserError, match=r"=1024 is 8 rows .* 9 ranks; .* 8 ranks, .*=1152"):
        scaling_laws.global_rows(1024, 128, 9)


def test_weight_decay_falls_with_the_square_of_the_width() -> None:
    assert scaling_laws.scaled_weight_decay(0.1, 768) == 0.1
    assert scaling_laws.scaled_weight_decay(0.1, 1536) == pytest.approx(0.025)
