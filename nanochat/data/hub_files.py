"""Files on the hub: which ones each stage needs, fetched once and read from disk afterwards.

All files of a repository are of one commit: the one that was the latest when its first file was
downloaded. `hub_revisions.json` in the base directory names them; a line can be replaced by hand.
"""

import hashlib
import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock

from nanochat import paths
from nanochat.data.download import (
    NUM_PARALLEL_FILES,
    HubFile,
    download,
    download_url,
    latest_commit,
)
from nanochat.data.eval_bundle import fetch_bundle
from nanochat.data.shards import read_rows
from nanochat.errors import UserError
from nanochat.runtime import hub_endpoint, hub_offline, mirrored

# Words of English, one a line: 370,099 when it was last looked at (2026-11).
WORD_LIST_URL = (
    "https://raw.githubusercontent.com/dwyl/english-words/refs/heads/master/words_alpha.txt"
)
MIN_WORDS = 300_000  # fewer are not that list


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
        *split_files("openai/gsm8k", "main/test"),
        *split_files("openai/openai_humaneval", "openai_humaneval/test"),
    ],
}
TASK_FILES["sft"] = TASK_FILES["mid"] + TASK_FILES["eval"]
TASK_FILES["rl"] = [*_GSM8K_TRAIN, *_HELD_OUT]  # the only public task with a reward
TASK_FILES["all"] = TASK_FILES["sft"]
STAGES_WITH_WORDS = {"mid", "sft", "eval", "all"}  # that spell
STAGES_WITH_BUNDLE = {"eval", "all"}


def fetch(files: list[HubFile], num_parallel: int = NUM_PARALLEL_FILES) -> None:
    """Download the files that are missing. Raises UserError when offline or unavailable."""
    missing = [file for file in files if not file.path.is_file()]
    if not missing:
        return  # nothing of the environment matters then
    if hub_offline():
        raise UserError(
            f"{missing[0].path} is missing and HF_HUB_OFFLINE forbids downloading it; unset it"
            " once, or use --source primer"
        )
    endpoint = hub_endpoint()
    download(_pinned(missing, endpoint), endpoint, num_parallel)


def revisions() -> dict[str, str]:
    """The commit of each repository of which a file has been downloaded."""
    try:
        return dict(json.loads(_revisions_path().read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError):
        raise UserError(f"{_revisions_path()} is not JSON of names; correct or remove it") from None


def _revisions_path() -> Path:
    return paths.base_dir() / "hub_revisions.json"


def _pinned(files: list[HubFile], endpoint: str) -> list[HubFile]:
    """The files, each at the commit of its repository, which is recorded."""
    paths.base_dir().mkdir(parents=True, exist_ok=True)
    with FileLock(f"{_revisions_path()}.lock"):
        known = recorded = revisions()
        for file in files:
            if file.repo not in known:
                known = {**known, file.repo: latest_commit(file, endpoint)}
        if known != recorded:
            paths.write_atomic(_revisions_path(), json.dumps(known, indent=1) + "\n")
    return [replace(file, revision=known[file.repo]) for file in files]


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


def word_list() -> tuple[str, ...]:
    """The words to spell, in lower case and order. UserError when offline or unavailable."""
    return _read_words(fetch_word_list())


@cache
def _read_words(path: Path) -> tuple[str, ...]:
    lines = path.read_text(encoding="utf-8", errors="replace").split()
    words = sorted({word.lower() for word in lines if word.isascii() and word.isalpha()})
    if len(words) < MIN_WORDS:
        raise UserError(
            f"{path} has {len(words):,} words, less than {MIN_WORDS:,}; remove it to download it"
            " again"
        )
    return tuple(words)


def word_list_digest() -> str:
    """16 hexadecimal digits of the words, for the settings of a run that trains on them."""
    return hashlib.sha256("\n".join(word_list()).encode()).hexdigest()[:16]


def word_list_path() -> Path:
    return paths.task_dir() / "words_alpha.txt"


def fetch_word_list() -> Path:
    """The list of words, downloaded if it is missing. UserError when offline or unavailable."""
    path = word_list_path()
    if not path.is_file():
        remedy = f"check the network, or put a list of words, one a line, at {path}"
        if hub_offline():
            raise UserError(
                f"{path} is missing and HF_HUB_OFFLINE forbids downloading it; {remedy}"
            )
        download_url(mirrored(WORD_LIST_URL), path, remedy)
    return path


def prefetch(names: str, num_parallel: int = NUM_PARALLEL_FILES) -> None:
    """Download the files of the named stages, separated by commas; the stages then work offline."""
    stages = stage_names(names)
    # Stages share files; a dict keeps each once, in order.
    files = dict.fromkeys(file for stage in stages for file in TASK_FILES[stage])
    fetch([_task_file(repo, name) for repo, name in files], num_parallel)
    if STAGES_WITH_WORDS.intersection(stages):
        word_list()  # which verifies it
    if STAGES_WITH_BUNDLE.intersection(stages):
        fetch_bundle()  # of the CORE metric


def describe_files() -> list[str]:
    """A line about the files of each stage: how many of them are here."""
    here = {
        stage: [_task_file(repo, name).path.is_file() for repo, name in dict.fromkeys(files)]
        for stage, files in TASK_FILES.items()
    }
    lines = [
        f"  {stage:<24} {sum(found):6,} of {len(found)} files" for stage, found in here.items()
    ]
    others = {"list of words": word_list_path(), "bundle of CORE": paths.eval_dir()}
    for name, path in others.items():
        lines.append(f"  {name:<24} {'here' if path.exists() else 'missing'}")
    return lines


def stage_names(names: str) -> list[str]:
    """The names in a list separated by commas. Raises UserError on an unknown one."""
    stages = [name.strip() for name in names.split(",") if name.strip()]
    for name in stages:
        if name not in TASK_FILES:
            raise UserError(f"--prefetch={name} is not one of {', '.join(TASK_FILES)}")
    return stages
