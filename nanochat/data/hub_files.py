"""Files on the hub: which ones each stage needs, fetched once and read from disk afterwards."""

from typing import Any

from nanochat import paths
from nanochat.data.download import HubFile, download
from nanochat.data.eval_bundle import fetch_bundle
from nanochat.data.shards import read_rows
from nanochat.errors import UserError
from nanochat.runtime import hub_endpoint, hub_offline


def split_files(repo: str, split: str, num_files: int = 1) -> list[tuple[str, str]]:
    """(repo, path) of the parquet files of "folder/split", as the hub numbers them."""
    return [(repo, f"{split}-{i:05d}-of-{num_files:05d}.parquet") for i in range(num_files)]


# Held out by every stage of conversations: their losses on it compare.
_HELD_OUT = [
    *split_files("HuggingFaceTB/smol-smoltalk", "data/test"),
    *split_files("cais/mmlu", "all/test"),
    *split_files("openai/gsm8k", "main/test"),
]
_GSM8K_TRAIN = split_files("openai/gsm8k", "main/train")
TASK_FILES: dict[str, list[tuple[str, str]]] = {
    "mid": [
        *split_files("HuggingFaceTB/smol-smoltalk", "data/train", 4),
        *split_files("cais/mmlu", "all/auxiliary_train"),
        *_GSM8K_TRAIN,
        *_HELD_OUT,
    ],
    "eval": [
        *split_files("allenai/ai2_arc", "ARC-Easy/train"),
        *split_files("allenai/ai2_arc", "ARC-Easy/test"),
        *split_files("allenai/ai2_arc", "ARC-Challenge/train"),
        *split_files("allenai/ai2_arc", "ARC-Challenge/test"),
        *split_files("cais/mmlu", "all/test"),
        *split_files("openai/openai_humaneval", "openai_humaneval/test"),
    ],
}
TASK_FILES["sft"] = TASK_FILES["mid"] + TASK_FILES["eval"]
TASK_FILES["rl"] = [*_GSM8K_TRAIN, *_HELD_OUT]  # the only public task with a reward


def fetch(files: list[HubFile]) -> None:
    """Download the files that are missing. Raises UserError when offline or unavailable."""
    missing = [file for file in files if not file.path.is_file()]
    if not missing:
        return  # nothing of the environment matters then
    if hub_offline():
        raise UserError(
            f"{missing[0].path} is missing and HF_HUB_OFFLINE forbids downloading it; unset it"
            " once, or use --source primer"
        )
    download(missing, hub_endpoint())


def _task_file(repo: str, name: str) -> HubFile:
    return HubFile(repo, name, paths.task_dir() / repo / name)


def task_rows(files: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """All rows of `split_files`, downloaded once. Raises UserError when they are unavailable."""
    hub_files = [_task_file(repo, name) for repo, name in files]
    try:
        fetch(hub_files)
    except UserError as error:
        stages = [stage for stage, known in TASK_FILES.items() if set(files) <= set(known)]
        remedy = f"; with a network, --prefetch {stages[0]} downloads it" if stages else ""
        raise UserError(f"{error}{remedy}") from None
    return [row for file in hub_files for row in read_rows(file.path)]


def prefetch(names: str) -> None:
    """Download the files of the named stages, separated by commas; the stages then work offline."""
    stages = stage_names(names)
    # Stages share files; a dict keeps each once, in order.
    files = dict.fromkeys(file for stage in stages for file in TASK_FILES[stage])
    fetch([_task_file(repo, name) for repo, name in files])
    if "eval" in stages:
        fetch_bundle()  # of the CORE metric


def stage_names(names: str) -> list[str]:
    """The names in a list separated by commas. Raises UserError on an unknown one."""
    stages = [name.strip() for name in names.split(",") if name.strip()]
    for name in stages:
        if name not in TASK_FILES:
            raise UserError(f"--prefetch={name} is not one of {', '.join(TASK_FILES)}")
    return stages
