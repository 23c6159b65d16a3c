"""A function in several processes that form one process group."""

import multiprocessing
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


def run_in_ranks(
    function: Callable[..., Any], world_size: int, folder: Path, *arguments: Any
) -> list[Any]:
    """What function(rank, world_size, *arguments) returns on each rank: tensors and plain data."""
    context = multiprocessing.get_context("forkserver")  # imports torch once for all ranks
    context.set_forkserver_preload([function.__module__])
    shared = (world_size, str(folder), function, arguments)
    processes = [context.Process(target=_main, args=(rank, *shared)) for rank in range(world_size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * world_size
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(world_size)]


def _main(
    rank: int, world_size: int, folder: str, function: Callable[..., Any], arguments: Any
) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(Path(folder, "store")), world_size)
    limit = timedelta(minutes=10)  # a busy machine may start one rank long before the others
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=limit)
    torch.save(function(rank, world_size, *arguments), Path(folder, f"rank{rank}.pt"))
    dist.destroy_process_group()
