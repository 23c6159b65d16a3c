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
    """Queries, keys and values, laid out as the model's."""
    generator = torch.Generator().manual_seed(length)
    return tuple(  # type: ignore[return-value]
        torch.randn(2, length, heads, 16, generator=generator).to(dtype).transpose(1, 2)
        for heads in (num_heads, num_kv_heads, num_kv_heads)
    )


def plain_attention(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
    """By scores that stand whole, in what autograd knows."""
    T = q.size(2)
    k, v = (x.repeat_interleave(q.size(1) // x.size(1), dim=1) for x in (k, v))
    seen = torch.ones(T, T, dtype=torch.bool).tril()
    if window is not None:
        seen = seen.triu(1 - window)
    scores = (q @ k.mT) * q.size(-1) ** -0.5
    return scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v


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
    """None is installed, and whether one can be imported is asked anew each time."""
    for name in ("flash_attn", "flash_attn_interface"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(attention, "_can_import", attention._can_import.__wrapped__)


@pytest.fixture
def flash_package(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Stands for an installed package: its documented function, with plain attention within."""

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
    given = [x.requires_grad_() for x in rows_of(40, 4, num_kv_heads, dtype)]
    near = 1e-5 if dtype == torch.float32 else 0.03
    ours, plain = KERNELS[kernel](*given, window), plain_attention(*given, window)
    torch.testing.assert_close(ours, plain, atol=near, rtol=near)
    for mine, theirs in zip(
        torch.autograd.grad(ours.square().sum(), given),
        torch.autograd.grad(plain.square().sum(), given),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, atol=10 * near, rtol=10 * near)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@torch.no_grad()  # on a CPU it has no backward pass
def test_flex_attention_gives_plain_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_compiled", lambda function: function)
    q, k, v = rows_of(256)
    for attend in (attention.attend_by_flex, followed_by_the_compiler(attention.attend_by_flex)):
        torch.testing.assert_close(attend(q, k, v, 100), plain_attention(q, k, v, 100))


def followed_by_the_compiler(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same in one graph, or an error; nothing is compiled, which would take minutes."""
    followed: Callable[..., Tensor] = torch.compile(function, backend="eager", fullgraph=True)
    return followed


# ---- the choice


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
def test_an_installed_flash_package_takes_what_it_can(
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
def test_without_such_a_package_windows_go_by_flex_attention_or_in_blocks(
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
    if device is CPU:  # of one that is not there, torch says nothing
        words = {"products": "two batched products", "blocks": "in blocks of 256 tokens"}
        assert words.get(expected, "flash attention") in attention.attention_kernel(rows)


@pytest.mark.usefixtures("flash_package")
def test_the_compiler_can_follow_the_choice_and_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_flash_package", lambda rows: "flash_attn")
    q, k, v = rows_of(40)
    attend = followed_by_the_compiler(attend_causally)
    for window in (None, 7):
        torch.testing.assert_close(attend(q, k, v, window), plain_attention(q, k, v, window))
