"""Real evaluation data next to the repository, if present, stored like files of the hub."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat import paths
from tests.hub import Hub

EVAL_DATA = Path(__file__).parents[2] / "shared" / "data" / "eval"
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
            raw = io.BytesIO()
            pq.write_table(pa.Table.from_pylist(rows[:num_rows]), raw)
            path = f"/datasets/{repo}/resolve/main/{split}-00000-of-00001.parquet"
            hub.files[path] = raw.getvalue()


def put_on_hub(repo: str, path: str, rows: list[dict[str, Any]]) -> None:
    """Store rows in this base directory as a download would."""
    file = paths.task_dir() / repo / path
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), file)
