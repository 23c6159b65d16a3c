import pytest

from nanochat.errors import UserError
from nanochat.training import schedule
from nanochat.training.schedule import Schedule


def test_the_learning_rate_rises_stays_and_falls() -> None:
    plan = Schedule(num_steps=100, warmup_steps=10, warmdown_share=0.4, final=0.1)
    rates = [plan.learning_rate(step) for step in range(100)]
    assert all(later > earlier for earlier, later in zip(rates[:10], rates[1:11], strict=True))
    assert rates[10:61] == [1.0] * 51
    assert all(later < earlier for earlier, later in zip(rates[60:99], rates[61:], strict=True))
    assert all(0.1 <= rate <= 1.0 for rate in rates)
    assert rates[99] == pytest.approx(0.1 + 0.9 / 40)


def test_a_schedule_without_warmdown_ends_on_the_plateau() -> None:
    plan = Schedule(num_steps=10, warmdown_share=0.0)
    assert [plan.learning_rate(step) for step in range(10)] == [1.0] * 10


@pytest.mark.parametrize("num_steps", [1, 2, 3, 7])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_shortest_runs_have_legal_rates(num_steps: int, share: float) -> None:
    plan = Schedule(num_steps=num_steps, warmup_steps=1, warmdown_share=share)
    for step in range(num_steps):
        assert 0.0 < plan.learning_rate(step) <= 1.0
        assert 0.85 <= plan.momentum(step) <= 0.95
        assert 0.0 < plan.weight_decay(step) <= 1.0


def test_the_momentum_has_risen_after_a_tenth_of_a_short_run() -> None:
    plan = Schedule(num_steps=100)
    assert plan.momentum(0) == 0.85
    assert plan.momentum(10) == pytest.approx(0.95)


def test_the_horizon_is_by_flops_when_they_are_given() -> None:
    given = {"num_parameters": 100, "flops_per_token": 10.0, "tokens_per_parameter": 20.0}
    assert schedule.horizon_tokens(**given, target_flops=1e6) == 100_000
    assert schedule.horizon_tokens(**given) == 2000


def test_a_horizon_of_nothing_is_refused_with_the_remedy() -> None:
    with pytest.raises(UserError, match=r"tokens_per_parameter=0.*num_iterations"):
        schedule.horizon_tokens(num_parameters=1, flops_per_token=1.0, tokens_per_parameter=0)


@pytest.mark.parametrize("name", ["tokens_per_parameter", "target_flops"])
def test_a_horizon_that_nobody_can_count_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=rf"--{name}=1e\+308 gives .* tokens; use less"):
        schedule.horizon_tokens(num_parameters=10**9, flops_per_token=0.5, **{name: 1e308})


def test_the_batch_of_depth_12_is_half_a_million_tokens() -> None:
    budget = schedule.REFERENCE_BUDGET_TOKENS
    assert schedule.batch_tokens(budget, 2048) == 2**19


def test_the_batch_grows_with_the_budget_in_whole_rows() -> None:
    sizes = [schedule.batch_tokens(10**exponent, 512) for exponent in range(4, 12)]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]
    assert all(size % 512 == 0 for size in sizes)


def test_a_batch_that_does_not_divide_names_one_that_does() -> None:
    with pytest.raises(UserError, match=r"total_batch_size=1000 .* 128 .*try 1024"):
        schedule.global_rows(1000, 128, 4)
    with pytest.raises(UserError, match=r"total_batch_size=100 .* 128 .*try 512"):
        schedule.global_rows(100, 128, 4)


@pytest.mark.parametrize("world_size", [1, 3, 4, 6, 8])
def test_a_batch_is_dealt_over_any_number_of_ranks_that_each_have_a_row(world_size: int) -> None:
    assert schedule.global_rows(1024, 128, world_size) == 8


def test_fewer_rows_than_ranks_are_refused_with_both_remedies() -> None:
    with pytest.raises(UserError, match=r"=1024 is 8 rows .* 9 ranks; .* 8 ranks, .*=1152"):
        schedule.global_rows(1024, 128, 9)


def test_weight_decay_falls_with_the_square_of_the_width() -> None:
    assert schedule.scaled_weight_decay(0.1, 768) == 0.1
    assert schedule.scaled_weight_decay(0.1, 1536) == pytest.approx(0.025)
