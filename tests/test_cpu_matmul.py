from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.kernels import cpu_matmul
from nanochat.kernels.cpu_matmul import linear, product

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
    monkeypatch.setattr(cpu_matmul, "is_amd", lambda: is_amd)
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
    transposed = cpu_matmul.sum_of_products(x.detach().flatten(0, -2), gradient.flatten(0, -2))
    torch.testing.assert_close(transposed.double(), exact_matrix.grad.T, atol=1e-5, rtol=0)
    for ours, theirs in ((found, exact), (x.grad, exact_x.grad), (matrix.grad, exact_matrix.grad)):
        torch.testing.assert_close(ours.double(), theirs, atol=1e-5, rtol=0)


@pytest.mark.usefixtures("nothing_is_small")
def test_a_transposed_matrix_gives_the_same_as_its_contiguous_copy() -> None:
    x, matrix = drawn(9, 24), drawn(24, 40).T
    torch.testing.assert_close(product(x, matrix), F.linear(x, matrix.clone()))


@pytest.mark.usefixtures("nothing_is_small")
@pytest.mark.parametrize("scale", [1.0, 40.0])
def test_sigmoids_of_a_product_equal_those_in_float64(scale: float) -> None:
    x, matrix = scale * drawn(9, 24), drawn(40, 24)
    exact = (x.double() @ matrix.double().T).sigmoid()
    for matrix_like in (matrix, matrix.T.contiguous().T):
        torch.testing.assert_close(
            product(x, matrix_like, "sigmoid").double(), exact, atol=1e-5, rtol=0
        )


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_is_small")
def test_a_compiled_product_has_the_same_gradients() -> None:
    x, matrix = drawn(9, 24).requires_grad_(), drawn(40, 24).requires_grad_()
    expected = torch.autograd.grad(linear(x, matrix).square().sum(), (x, matrix))
    compiled = torch.compile(lambda x, matrix: linear(x, matrix).square().sum())
    found = torch.autograd.grad(compiled(x, matrix), (x, matrix))
    torch.testing.assert_close(found, expected)


@pytest.mark.usefixtures("nothing_is_small")
def test_without_gradients_the_bits_are_those_of_stock_engines() -> None:
    x, matrix = drawn(300, 200), drawn(500, 200)
    with torch.no_grad():
        assert torch.equal(linear(x, matrix), F.linear(x, matrix))


@pytest.mark.usefixtures("nothing_is_small")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_are_multiplied_by_torch(dtype: torch.dtype) -> None:
    x, matrix = drawn(9, 24).to(dtype), drawn(40, 24).to(dtype)
    assert torch.equal(linear(x, matrix), F.linear(x, matrix))


@pytest.mark.parametrize("size", [1, 4, 7, 33])
def test_symmetric_products_in_strips_equal_whole_ones(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_matmul, "LARGE", 1)
    x = drawn(3, size, 9)
    gram = cpu_matmul.symmetric_product(x, x.mT)
    torch.testing.assert_close(gram, x @ x.mT)
    assert torch.equal(gram, gram.mT)
    sum_of_powers = cpu_matmul.symmetric_product(gram, gram, beta=0.5, alpha=2.0)
    torch.testing.assert_close(sum_of_powers, 0.5 * gram + 2.0 * gram @ gram)


@pytest.mark.parametrize("is_amd", [False, True])
def test_accumulated_products_equal_their_sum(
    is_amd: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_matmul, "is_amd", lambda: is_amd)
    pairs = [(drawn(9, 40), drawn(9, 24)) for _ in range(3)]
    total = cpu_matmul.zeros_for_sums(drawn(40, 24), torch.float32)
    for left, right in pairs:
        cpu_matmul.add_sum_of_products(total, left, right)
    torch.testing.assert_close(total, sum(left.T @ right for left, right in pairs))


def test_the_processor_is_asked_once_at_the_first_product(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    monkeypatch.setattr(Path, "read_text", lambda path, **_: reads.append(path) or "AuthenticAMD")
    cpu_matmul._is_amd.cache_clear()
    assert cpu_matmul.is_amd() and cpu_matmul.is_amd()
    assert reads == [Path("/proc/cpuinfo")]
    cpu_matmul._is_amd.cache_clear()
