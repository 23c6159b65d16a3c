"""Where the time of a step goes: a trace by torch's profiler."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torch.profiler import profile, schedule

SKIPPED, WARM_UP, TRACED = 2, 1, 2  # steps; the first ones compile and fill caches


@contextmanager
def traced_steps(path: Path) -> Iterator[Callable[[], None]]:
    """Within it, what is yielded is called after each step; a few of the first go to `path`.

    The file is opened by ui.perfetto.dev and chrome://tracing. A run that ends before leaves none.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with profile(
        schedule=schedule(wait=SKIPPED, warmup=WARM_UP, active=TRACED, repeat=1),
        on_trace_ready=lambda traced: traced.export_chrome_trace(str(path)),
        record_shapes=True,
    ) as profiler:
        yield profiler.step
