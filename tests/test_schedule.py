import pytest

from nanochat.training.schedule import Schedule


def test_the_learning_rate_rises_stays_and_falls() -> None:
    schedule = Schedule(num_steps=100, warmup_steps=10, warmdown_share=0.4, final=0.1)
    rates = [schedule.learning_rate(step) for step in range(100)]
    assert all(later > earlier for earlier, later in zip(rates[:10], rates[1:11], strict=True))
    assert rates[10:61] == [1.0] * 51
    assert all(later < earlier for earlier, later in zip(rates[60:99], rates[61:], strict=True))
    assert all(0.1 <= rate <= 1.0 for rate in rates[10:])
    assert rates[99] == pytest.approx(0.1 + 0.9 / 40)


@pytest.mark.parametrize("final", [0.0, 0.1, 0.3, 1.0])
def test_the_warmup_rises_linearly_from_zero_whatever_the_final_rate(final: float) -> None:
    schedule = Schedule(num_steps=100, warmup_steps=10, final=final)
    rates = [schedule.learning_rate(step) for step in range(11)]
    assert rates == [(step + 1) / 11 for step in range(11)]


def test_a_schedule_without_warmdown_ends_on_the_plateau() -> None:
    schedule = Schedule(num_steps=10, warmdown_share=0.0)
    assert [schedule.learning_rate(step) for step in range(10)] == [1.0] * 10


@pytest.mark.parametrize("num_steps", [1, 2, 3, 7])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_shortest_runs_have_valid_rates(num_steps: int, share: float) -> None:
    schedule = Schedule(num_steps=num_steps, warmup_steps=1, warmdown_share=share)
    for step in range(num_steps):
        assert 0.0 < schedule.learning_rate(step) <= 1.0
        assert 0.85 <= schedule.momentum(step) <= 0.95
        assert 0.0 < schedule.weight_decay(step) <= 1.0


def test_the_momentum_is_full_after_a_tenth_of_a_short_run() -> None:
    schedule = Schedule(num_steps=100)
    assert schedule.momentum(0) == 0.85
    assert schedule.momentum(10) == pytest.approx(0.95)


@pytest.mark.parametrize(
    ("limit", "norm", "scale"),
    [(1.0, 0.5, 1.0), (1.0, 1.0, 1.0), (1.0, 4.0, 0.25), (0.0, 9.0, 1.0), (1.0, 0.0, 1.0)],
)
def test_a_gradient_is_scaled_down_to_the_limit(limit: float, norm: float, scale: float) -> None:
    assert Schedule(num_steps=1, max_gradient_norm=limit).gradient_scale(norm) == scale
