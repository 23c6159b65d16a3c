import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from nanochat.kernels import attention
from nanochat.kernels.attention import KERNELS, Kernel, Rows, attend_causally, chosen_kernel
from tests.reference import attention as slow

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
BFLOAT16 = torch.bfloat16


def rows_of(
    length: int, num_heads: int = 4, num_kv_heads: int = 2, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values in the memory layout of the model."""
    generator = torch.Generator().manual_seed(length)
    return tuple(  # type: ignore[return-value]
        torch.randn(2, length, heads, 16, generator=generator).to(dtype).transpose(1, 2)
        for heads in (num_heads, num_kv_heads, num_kv_heads)
    )


def plain_attention(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
    """With all scores materialized, in plain autograd."""
    T = q.size(2)
    k, v = (x.repeat_interleave(q.size(1) // x.size(1), dim=1) for x in (k, v))
    visible = torch.ones(T, T, dtype=torch.bool).tril()
    if window is not None:
        visible = visible.triu(1 - window)
    scores = (q @ k.mT) * q.size(-1) ** -0.5
    return scores.masked_fill(~visible, -torch.inf).softmax(-1) @ v


@pytest.mark.parametrize("window", [None, 1, 3, 10])
@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
def test_attention_equals_the_slow_reference(
    num_kv_heads: int, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "BLOCK", 4)
    q, k, v = rows_of(10, 4, num_kv_heads)
    expected = torch.stack([slow.attend(*row, window) for row in zip(q, k, v, strict=True)])
    for found in (attend_causally(q, k, v, window), plain_attention(q, k, v, window)):
        torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)


@pytest.fixture(autouse=True)
def no_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """None is installed, and imports are tried again in each test."""
    for name in ("flash_attn", "flash_attn_interface"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(attention, "_can_import", attention._can_import.__wrapped__)


@pytest.fixture
def flash_package(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A fake of an installed package: its documented function by plain attention."""

    def flash_attn_func(
        q: Tensor, k: Tensor, v: Tensor, *, causal: bool, window_size: tuple[int, int]
    ) -> Tensor:
        left, right = window_size
        assert causal and right == 0
        window = None if left == -1 else left + 1
        y = plain_attention(*(x.transpose(1, 2) for x in (q, k, v)), window)
        return y.transpose(1, 2)

    module: Any = ModuleType("flash_attn")
    module.flash_attn_func = flash_attn_func
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    return module


@pytest.mark.usefixtures("flash_package")
@pytest.mark.parametrize(
    ("kernel", "window", "num_kv_heads", "dtype"),
    [
        ("fused", None, 4, torch.float32),
        ("fused", None, 2, torch.float32),
        ("products", None, 4, torch.float32),
        ("products", 7, 4, torch.float32),
        ("products", None, 4, BFLOAT16),
        ("products", 7, 4, BFLOAT16),
        ("blocks", 1, 4, torch.float32),
        ("blocks", 7, 2, torch.float32),
        ("blocks", 39, 1, torch.float32),
        ("blocks", 7, 4, BFLOAT16),
        ("flash", None, 2, torch.float32),
        ("flash", 7, 2, torch.float32),
    ],
)
def test_every_kernel_gives_plain_attention_and_its_gradients(
    kernel: Kernel,
    window: int | None,
    num_kv_heads: int,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention, "BLOCK", 8)
    inputs = [x.requires_grad_() for x in rows_of(40, 4, num_kv_heads, dtype)]
    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    ours, plain = KERNELS[kernel](*inputs, window), plain_attention(*inputs, window)
    torch.testing.assert_close(ours, plain, atol=tolerance, rtol=tolerance)
    for mine, theirs in zip(
        torch.autograd.grad(ours.square().sum(), inputs),
        torch.autograd.grad(plain.square().sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, atol=10 * tolerance, rtol=10 * tolerance)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@torch.no_grad()  # on a CPU FlexAttention has no backward pass
def test_flex_attention_gives_plain_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_compiled", lambda function: function)
    q, k, v = rows_of(256)
    for attend in (attention.attend_by_flex, traced_in_one_graph(attention.attend_by_flex)):
        torch.testing.assert_close(attend(q, k, v, 100), plain_attention(q, k, v, 100))


def traced_in_one_graph(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function traced by dynamo, an error on a graph break; compiling would take minutes."""
    traced: Callable[..., Tensor] = torch.compile(function, backend="eager", fullgraph=True)
    return traced


# ---- choice of the kernel


@pytest.mark.parametrize(
    ("installed", "generation", "dtype", "head_dim", "package"),
    [
        (("flash_attn_interface", "flash_attn"), 9, BFLOAT16, 128, "flash_attn_interface"),
        (("flash_attn_interface", "flash_attn"), 8, torch.float16, 128, "flash_attn"),
        (("flash_attn",), 9, BFLOAT16, 128, "flash_attn"),
        (("flash_attn_interface", "flash_attn"), 10, BFLOAT16, 128, "flash_attn"),
        (("flash_attn_interface",), 8, BFLOAT16, 128, ""),
        ((), 9, BFLOAT16, 128, ""),
        (("flash_attn",), 7, BFLOAT16, 128, ""),
        (("flash_attn",), 9, torch.float32, 128, ""),
        (("flash_attn",), 9, BFLOAT16, 264, ""),
        (("flash_attn",), 9, BFLOAT16, 12, ""),
    ],
)
def test_an_installed_flash_package_is_used_where_it_works(
    installed: tuple[str, ...],
    generation: int,
    dtype: torch.dtype,
    head_dim: int,
    package: str,
    flash_package: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("flash_attn", "flash_attn_interface"):
        monkeypatch.setitem(sys.modules, name, flash_package if name in installed else None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (generation, 0))
    rows = Rows(4, 4, 2048, head_dim, 1024, CUDA, dtype)
    assert (chosen_kernel(rows) == "flash") == bool(package)
    if package:
        assert attention.attention_kernel(rows) == f"FlashAttention, {package}"
    assert chosen_kernel(rows._replace(device=CPU)) != "flash"


@pytest.mark.parametrize(
    ("device", "length", "window", "is_training", "expected"),
    [
        (CUDA, 2048, None, True, "fused"),
        (CUDA, 2048, 1024, True, "flex"),
        (CUDA, 2048, 1024, False, "blocks"),
        (CUDA, 2050, 1024, True, "blocks"),
        (CPU, 2048, 1024, True, "blocks"),
        (CPU, 2048, None, True, "fused"),
        (CPU, 512, None, True, "products"),
        (CPU, 512, 256, True, "products"),
    ],
)
def test_without_a_flash_package_windows_use_flex_attention_or_blocks(
    device: torch.device,
    length: int,
    window: int | None,
    is_training: bool,
    expected: Kernel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(attention, "_has_triton", lambda: True)
    rows = Rows(4, 4, length, 128, window, device, BFLOAT16)
    assert chosen_kernel(rows, is_training) == expected
    monkeypatch.setattr(attention, "_has_triton", lambda: False)
    assert chosen_kernel(rows) != "flex"
    if device is CPU:  # torch cannot be asked about a device that does not exist
        descriptions = {"products": "two batched products", "blocks": "in blocks of 256 tokens"}
        assert descriptions.get(expected, "flash attention") in attention.attention_kernel(rows)


@pytest.mark.usefixtures("flash_package")
def test_choice_and_call_of_a_kernel_are_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_flash_package", lambda rows: "flash_attn")
    q, k, v = rows_of(40)
    attend = traced_in_one_graph(attend_causally)
    for window in (None, 7):
        torch.testing.assert_close(attend(q, k, v, window), plain_attention(q, k, v, window))
