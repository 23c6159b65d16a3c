import pytest
import torch
from torch import Tensor, nn

from nanochat.errors import UserError
from nanochat.muon import Muon, polar_factor
from tests.reference import muon as slow

SHAPES = [(6, 6), (12, 5), (5, 12), (6, 6), (1, 7), (7, 1), (6, 6)]


def drawn(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def matrices() -> list[tuple[str, nn.Parameter]]:
    return [(f"m{i}", nn.Parameter(drawn(shape, i))) for i, shape in enumerate(SHAPES)]


def set_gradients(named: list[tuple[str, nn.Parameter]], step: int) -> None:
    for i, (_, parameter) in enumerate(named):
        parameter.grad = drawn(parameter.shape, 1000 * (step + 1) + i)


@pytest.mark.parametrize(
    ("weight_decay", "cautious", "variance_decay"),
    [(0.0, True, 0.95), (0.3, True, 0.95), (0.3, False, 0.9), (0.0, True, None)],
)
def test_stacked_muon_equals_the_reference_implementation(
    weight_decay: float, cautious: bool, variance_decay: float | None
) -> None:
    named = matrices()
    settings = {
        "lr": 0.05, "momentum": 0.9, "variance_decay": variance_decay,
        "weight_decay": weight_decay, "cautious": cautious,
    }  # fmt: skip
    references = [slow.SlowMuon(parameter, **settings) for _, parameter in named]
    fast = Muon(named, **settings)
    for step in range(4):
        set_gradients(named, step)
        for (_, parameter), reference in zip(named, references, strict=True):
            assert parameter.grad is not None
            reference.step(parameter.grad)
        fast.step()
    for (name, parameter), reference in zip(named, references, strict=True):
        torch.testing.assert_close(
            parameter.detach().double(), reference.parameter, atol=2e-5, rtol=1e-5, msg=name
        )


@pytest.mark.parametrize("shape", [(40, 40), (64, 16), (16, 64)])
def test_singular_values_of_the_polar_factor_are_near_one(shape: tuple[int, int]) -> None:
    factor = polar_factor(drawn((3, *shape), 0))
    values = torch.linalg.svdvals(factor)
    assert float(values.max()) < 1.2
    # A square Gaussian matrix has singular values near zero, which five steps cannot raise to 1.
    assert float(values.median()) > 0.8


def test_the_polynomials_raise_values_from_a_thousandth_to_near_one() -> None:
    values = torch.logspace(-3, 0, 400, dtype=torch.float64)
    raised = slow.polar_factor(torch.diag(values)).diagonal()
    norm = float(values.norm())
    reached = raised[values / norm > 2e-3]
    assert float(reached.min()) > 0.8
    assert float(raised.max()) < 1.2


@pytest.mark.parametrize("rank", [1, 4, 32])
@pytest.mark.parametrize("shape", [(32, 128), (128, 32), (32, 64), (1, 7)])
def test_wide_matrices_are_as_exact_as_one_polynomial_at_a_time(
    shape: tuple[int, int], rank: int
) -> None:
    """Even if most singular values are thousands of times smaller than the largest."""
    gradient = drawn((shape[0], rank), 0) @ drawn((rank, shape[1]), 1) + 1e-3 * drawn(shape, 2)
    expected = slow.polar_factor(gradient.double())
    found = polar_factor(gradient[None])[0]
    assert (found - expected).norm() < 3e-4 * expected.norm()


def test_the_scale_of_the_gradient_does_not_matter() -> None:
    gradient = drawn((2, 8, 8), 3)
    torch.testing.assert_close(
        polar_factor(gradient * 1e4), polar_factor(gradient), atol=1e-3, rtol=1e-3
    )


def test_zero_and_missing_gradients_leave_finite_parameters_in_place() -> None:
    named = matrices()
    before = [parameter.detach().clone() for _, parameter in named]
    optimizer = Muon(named)
    for i, (_, parameter) in enumerate(named):
        parameter.grad = torch.zeros_like(parameter) if i % 2 else None
    optimizer.step()
    for (_, parameter), old in zip(named, before, strict=True):
        assert torch.equal(parameter, old)


def test_a_parameter_that_is_not_a_matrix_is_rejected_by_name() -> None:
    with pytest.raises(ValueError, match="bias has shape"):
        Muon([("bias", nn.Parameter(torch.zeros(3)))])


def test_a_loaded_state_resumes_bitwise() -> None:
    original, resumed = matrices(), matrices()
    first, second = Muon(original, lr=0.1), Muon(resumed, lr=0.1)
    for step in range(2):
        set_gradients(original, step)
        first.step()
    saved = first.state_dict()
    for (_, parameter), (_, other) in zip(original, resumed, strict=True):
        other.data.copy_(parameter.data)
    second.load_merged([saved])
    for step in range(2, 4):
        for named, optimizer in ((original, first), (resumed, second)):
            set_gradients(named, step)
            optimizer.step()
    for (name, parameter), (_, other) in zip(original, resumed, strict=True):
        assert torch.equal(parameter, other), name


def test_a_state_of_another_model_is_rejected_by_name() -> None:
    with pytest.raises(UserError, match="m6"):
        Muon(matrices()).load_merged([Muon(matrices()[:-1]).state_dict()])


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 32, 8), (2, 8, 32)])
def test_a_polar_factor_in_bfloat16_is_near_that_in_float32(shape: tuple[int, ...]) -> None:
    matrices = drawn(shape, 5)
    exact, rounded = polar_factor(matrices), polar_factor(matrices, torch.bfloat16)
    assert rounded.dtype == torch.float32
    assert (rounded - exact).norm() < 0.1 * exact.norm()
