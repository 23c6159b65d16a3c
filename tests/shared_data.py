"""Real evaluation data next to the repository, if present, stored like files of the hub."""

import csv
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat import paths
from tests.hub import Hub

EVAL_DATA = Path(__file__).parents[2] / "shared" / "data" / "eval"
CORPUS = EVAL_DATA.parent / "corpus"
needs_eval_data = pytest.mark.skipif(not EVAL_DATA.is_dir(), reason="needs ../shared/data/eval")


def json_lines(name: str) -> list[Any]:
    """The values of a file with one JSON value per line."""
    text = (EVAL_DATA / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def mmlu_rows(split: str) -> list[dict[str, Any]]:
    """The questions of all 57 subjects."""
    rows = []
    for path in sorted((EVAL_DATA / "mmlu" / split).glob("*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                choices = [row[f"choice{i}"] for i in range(4)]
                subject = path.stem.removesuffix(f"_{split}")
                rows.append(
                    {"question": row["question"], "subject": subject, "choices": choices,
                     "answer": int(row["answer"])}
                )  # fmt: skip
    return rows


def arc_rows(subset: str) -> list[dict[str, Any]]:
    """The test questions of ARC-Easy or ARC-Challenge, from CORE's file, as the hub has them."""
    rows = []
    for item in json_lines(f"eval_data/world_knowledge/{subset.lower().replace('-', '_')}.jsonl"):
        labels = list("ABCDE"[: len(item["choices"])])
        question = item["query"].removeprefix("Question: ")
        choices = {"text": item["choices"], "label": labels}
        rows.append({"question": question, "choices": choices, "answerKey": labels[item["gold"]]})
    return rows


def serve_chat_tasks(hub: Hub, num_rows: int | None = None) -> None:
    """Serve the first `num_rows` test questions of each public chat task, None for all."""
    files = {
        "allenai/ai2_arc": {
            f"{subset}/test": arc_rows(subset) for subset in ("ARC-Easy", "ARC-Challenge")
        },
        "cais/mmlu": {"all/test": mmlu_rows("test")},
        "openai/gsm8k": {"main/test": json_lines("gsm8k/test.jsonl")},
        "openai/openai_humaneval": {
            "openai_humaneval/test": json_lines("humaneval/HumanEval.jsonl")
        },
    }
    for repo, splits in files.items():
        for split, rows in splits.items():
            hub.files[_address(repo, split)] = as_parquet(rows[:num_rows])


def _address(repo: str, split: str, number: int = 0, num_files: int = 1) -> str:
    return f"/datasets/{repo}/resolve/main/{split}-{number:05d}-of-{num_files:05d}.parquet"


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    """A parquet file of these rows."""
    raw = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), raw)
    return raw.getvalue()


def serve_training_tasks(hub: Hub) -> None:
    """Serve what midtraining, finetuning and reinforcement learning read, in the hub's layout.

    The dialogues are other ones, in the shape of smol-smoltalk; the training questions of ARC and
    MMLU are their test and dev questions. So no score of a model that was trained on them counts.
    """
    smoltalk = "HuggingFaceTB/smol-smoltalk"
    dialogues = [{**row, "source": "sgd"} for row in json_lines("chat/sgd_dialogues_train.jsonl")]
    for number in range(4):
        hub.files[_address(smoltalk, "data/train", number, 4)] = as_parquet(dialogues[number::4])
    test = [{**row, "source": "sgd"} for row in json_lines("chat/sgd_dialogues_test.jsonl")]
    files = {
        (smoltalk, "data/test"): test,
        ("cais/mmlu", "all/auxiliary_train"): mmlu_rows("dev"),
        ("openai/gsm8k", "main/train"): json_lines("gsm8k/train.jsonl"),
        ("allenai/ai2_arc", "ARC-Easy/train"): arc_rows("ARC-Easy"),
        ("allenai/ai2_arc", "ARC-Challenge/train"): arc_rows("ARC-Challenge"),
    }
    hub.files |= {_address(*name): as_parquet(rows) for name, rows in files.items()}


def serve_all(hub: Hub) -> None:
    """Serve everything that speedrun.sh downloads; other files have the name of their address."""
    serve_chat_tasks(hub)
    serve_training_tasks(hub)
    folder = "/datasets/karpathy/fineweb-edu-100b-shuffle/resolve/main"
    numbers = [0, 1, 2, 3, 4, 5, 6, 1822]  # the last one of the data set is for validation
    for number, path in zip(numbers, sorted(CORPUS.glob("*.parquet")), strict=True):
        hub.files[f"{folder}/shard_{number:05d}.parquet"] = path.read_bytes()
    hub.files["/words_alpha.txt"] = (EVAL_DATA / "words" / "words_alpha.txt").read_bytes()
    bundle = io.BytesIO()
    with zipfile.ZipFile(bundle, "w") as archive:
        names = [*EVAL_DATA.glob("eval_data/**/*.jsonl"), EVAL_DATA / "core.yaml"]
        for path in [*names, EVAL_DATA / "eval_meta_data.csv"]:
            archive.write(path, f"eval_bundle/{path.relative_to(EVAL_DATA)}")
    hub.files["/eval_bundle.zip"] = bundle.getvalue()


def put_on_hub(repo: str, path: str, rows: list[dict[str, Any]]) -> None:
    """Store rows in this base directory as a download would."""
    file = paths.task_dir() / repo / path
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), file)
