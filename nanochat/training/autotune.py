"""How a run goes on its device: compiled or not, how many rows at a time, beside which peak."""

import logging
from typing import Any

import torch
from torch import nn

from nanochat import metrics
from nanochat.gpt import GPT
from nanochat.runtime import Runtime
from nanochat.training import micro_batch, trainer
from nanochat.training.config import Plan

logger = logging.getLogger(__name__)

PREPARING_PAYS_FROM_SECONDS = 60  # compiling, searching: work at the device's peak, dev/LOG.md


def compiled(plan: Plan, speed: trainer.Speed, runtime: Runtime) -> nn.Module:
    """The model, compiled where that pays and works, else as it is; which one is said."""
    reason = {"off": "--compile=off", "on": ""}.get(plan.options.compile)
    if reason is None:
        reason = _reason_for_eager(plan, speed, runtime)
    if reason:
        logger.info("eager, not compiled: %s", reason)
        return plan.model
    try:
        torch.compile(torch.sin)(torch.ones(1, device=runtime.device))
    except Exception as error:  # whatever a compiler's absence is called on this machine
        logger.info("eager, not compiled: torch.compile fails here (%s)", type(error).__name__)
        return plan.model
    logger.info("compiling the model: the first step takes longer")
    module: nn.Module = torch.compile(plan.model, dynamic=False)  # type: ignore[assignment]
    return module


def _reason_for_eager(plan: Plan, speed: trainer.Speed, runtime: Runtime) -> str:
    if not plan.has_fixed_shape:
        return "the rows of this stage change their length from step to step"
    if runtime.device.type == "mps":
        return "not on this device"
    if _is_short(plan, speed, runtime):
        return "the run is too short to win the compiler's time back"
    return ""


def _is_short(plan: Plan, speed: trainer.Speed, runtime: Runtime) -> bool:
    num_tokens = plan.schedule.num_steps * plan.rows * plan.model.config.sequence_len
    share = num_tokens / runtime.world_size * speed.flops_per_token
    return share < PREPARING_PAYS_FROM_SECONDS * (speed.peak_flops or 0.0)


def micro_rows(plan: Plan, speed: trainer.Speed, runtime: Runtime, found: dict[str, Any]) -> int:
    """Rows in one forward pass: as asked, or as before in the same place, or what is best."""
    rank_rows = plan.rank_rows(runtime.world_size)
    if plan.options.device_batch_size > 0:
        return min(plan.options.device_batch_size, rank_rows)
    *there, rows = found.get("micro_batch", [0])
    if there == hardware_key(runtime):  # the same cut gives the same bits
        return int(rows)
    is_worth_it = plan.has_fixed_shape and not _is_short(plan, speed, runtime)
    if runtime.device.type == "cuda" or (runtime.device.type == "cpu" and is_worth_it):
        return micro_batch.search(plan.model, rank_rows, runtime)
    return micro_batch.usual(rank_rows, plan.model.config.sequence_len)


def hardware_key(runtime: Runtime) -> list[Any]:
    return [_device_name(runtime), runtime.world_size]


def _device_name(runtime: Runtime) -> str:
    if runtime.device.type == "cuda":
        return torch.cuda.get_device_name(runtime.device)
    return runtime.device.type.upper()


def measure_speed(model: GPT, runtime: Runtime) -> trainer.Speed:
    """What this device could do: from the table of known ones, else from a measured matmul."""
    peak = metrics.peak_flops(_device_name(runtime), runtime.compute_dtype)
    if peak is None:
        peak = metrics.measure_matmul_peak(runtime.device, runtime.compute_dtype)
        logger.info("peak of this device, measured by a matmul: %.0f GFLOP/s", peak / 1e9)
    return trainer.Speed(model.flops_per_token(), peak)
