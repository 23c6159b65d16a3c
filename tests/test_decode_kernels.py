"""Whether Triton can compile its kernels for NVIDIA GPUs, which takes no GPU."""

from typing import Any

import pytest
import torch

ROTATE = {
    "qkv": "*bf16", "cos": "*fp32", "sin": "*fp32", "places": "*i64", "q": "*bf16",
    "keys": "*bf16", "values": "*bf16", "eps": "fp32", "x": "*bf16", "table": "*fp32",
    "tokens": "*i64", "gates": "*fp32", "x_stride": "i32",
}  # fmt: skip
SHAPE = {"H": 10, "K": 10, "HALF": 64, "SIZE": 64}
GATED = {"NUM_GATES": 12, "GATES_SIZE": 16, "LATER_HEADS": 0}
RELU = {"x": "*bf16", "y": "*bf16", "count": "i32"}


@pytest.mark.slow
@pytest.mark.skipif(torch.version.cuda is None, reason="no code for NVIDIA GPUs in this torch")
@pytest.mark.parametrize("capability", [80, 90, 120])
@pytest.mark.parametrize(
    ("name", "types", "constants"),
    [
        ("_rotate_norm_store", ROTATE, SHAPE | GATED),
        ("_rotate_norm_store", ROTATE, SHAPE | {"NUM_GATES": 0, "GATES_SIZE": 0, "LATER_HEADS": 0}),
        (
            "_rotate_norm_store",
            ROTATE,
            GATED | {"H": 4, "K": 2, "HALF": 12, "SIZE": 16, "LATER_HEADS": 1},
        ),
        ("_relu_squared", RELU, {"SIZE": 1024}),
    ],
)
def test_kernels_compile_for_each_generation(
    name: str, types: dict[str, str], constants: dict[str, int], capability: int, tmp_path: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))  # else an earlier result is taken
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from nanochat.kernels import decode_kernels

    signature = types | dict.fromkeys(constants, "constexpr")
    source = ASTSource(getattr(decode_kernels, name), signature, constants)
    options = {"num_warps": 1, "enable_fp_fusion": True}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    assert compiled.asm["cubin"]
