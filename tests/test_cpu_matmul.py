import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.kernels import cpu_matmul
from nanochat.kernels.cpu_matmul import linear, product, sigmoids

GENERATOR = torch.Generator().manual_seed(0)


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=GENERATOR)


@pytest.fixture
def nothing_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_matmul, "SMALL", 0)


@pytest.mark.usefixtures("nothing_is_small")
@pytest.mark.parametrize("shape", [(7,), (2, 5), (1,), (0,)])
@pytest.mark.parametrize("upstream", ["dense", "expanded", "transposed"])
@pytest.mark.parametrize("is_amd", [False, True])
def test_a_product_and_its_gradients_equal_those_in_float64(
    shape: tuple[int, ...], upstream: str, is_amd: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_matmul, "IS_AMD", is_amd)
    x, matrix = drawn(*shape, 24).requires_grad_(), drawn(40, 24).requires_grad_()
    exact_x, exact_matrix = (t.detach().double().requires_grad_() for t in (x, matrix))
    gradient = {
        "dense": drawn(*shape, 40),
        "expanded": torch.ones(()).expand(*shape, 40),
        "transposed": drawn(40, *reversed(shape)).permute(*reversed(range(len(shape) + 1))),
    }[upstream]
    found, exact = linear(x, matrix), F.linear(exact_x, exact_matrix)
    found.backward(gradient)
    exact.backward(gradient.double())
    turned = cpu_matmul.sum_of_products(x.detach().flatten(0, -2), gradient.flatten(0, -2))
    torch.testing.assert_close(turned.double(), exact_matrix.grad.T, atol=1e-5, rtol=0)
    for ours, theirs in ((found, exact), (x.grad, exact_x.grad), (matrix.grad, exact_matrix.grad)):
        torch.testing.assert_close(ours.double(), theirs, atol=1e-5, rtol=0)


@pytest.mark.usefixtures("nothing_is_small")
def test_a_transposed_matrix_gives_the_same_as_its_copy() -> None:
    x, matrix = drawn(9, 24), drawn(24, 40).T
    torch.testing.assert_close(product(x, matrix), F.linear(x, matrix.clone()))


@pytest.mark.usefixtures("nothing_is_small")
@pytest.mark.parametrize("scale", [1.0, 40.0])
def test_sigmoids_of_a_product_equal_those_in_float64(scale: float) -> None:
    x, matrix = scale * drawn(9, 24), drawn(40, 24)
    exact = (x.double() @ matrix.double().T).sigmoid()
    for matrix_like in (matrix, matrix.T.contiguous().T):
        torch.testing.assert_close(sigmoids(x, matrix_like).double(), exact, atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_is_small")
def test_compiled_it_is_the_same() -> None:
    x, matrix = drawn(9, 24).requires_grad_(), drawn(40, 24).requires_grad_()
    expected = torch.autograd.grad(linear(x, matrix).square().sum(), (x, matrix))
    compiled = torch.compile(lambda *both: linear(*both).square().sum())
    found = torch.autograd.grad(compiled(x, matrix), (x, matrix))
    torch.testing.assert_close(found, expected)


@pytest.mark.usefixtures("nothing_is_small")
def test_without_gradients_the_bits_are_those_of_stock_engines() -> None:
    x, matrix = drawn(300, 200), drawn(500, 200)
    with torch.no_grad():
        assert torch.equal(linear(x, matrix), F.linear(x, matrix))


@pytest.mark.usefixtures("nothing_is_small")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_kinds_of_numbers_are_multiplied_as_ever(dtype: torch.dtype) -> None:
    x, matrix = drawn(9, 24).to(dtype), drawn(40, 24).to(dtype)
    assert torch.equal(linear(x, matrix), F.linear(x, matrix))
