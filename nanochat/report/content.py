"""What the report says, from its sections: values and text, which the renderers only lay out."""

import platform
import re
import shlex
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

import psutil

from nanochat import paths
from nanochat.report.explanations import CHAT_TASKS, EXPLANATIONS, GPT2, GPT2_ACCURACY, GPT2_CORE
from nanochat.report.sections import COLUMNS, SectionData, now

TRAINING = {"base": "pretraining", "mid": "midtraining", "sft": "supervised finetuning",
            "rl": "reinforcement learning"}  # fmt: skip
CORE_TASK, CORE_CHANCE, CORE_CENTERED = 0, 3, 4  # columns of base_eval's rows


@dataclass(frozen=True)
class Score:
    """A value of the results table."""

    label: str
    value: float
    bounds: tuple[float, float] | None = None  # of the 95 % interval, if known

    @property
    def is_share(self) -> bool:
        # Scores near 0 need digits; shares read best as percentages.
        return not re.search("bits per byte|CORE", self.label)

    @property
    def text(self) -> str:
        return f"{100 * self.value:.1f} %" if self.is_share else f"{self.value:.4f}"

    @property
    def interval(self) -> str:
        """The 95 % interval in the unit of `text`; empty if it is not known."""
        if self.bounds is None:
            return ""
        low, high = self.bounds
        if self.is_share:
            return f"{100 * max(0.0, low):.1f}–{100 * min(1.0, high):.1f}"
        return f"{low:.3f}–{high:.3f}"

    @property
    def with_interval(self) -> str:
        return f"{self.text} ({self.interval})" if self.interval else self.text


@dataclass(frozen=True)
class TimeRow:
    title: str
    seconds: float  # wall clock
    device_hours: float  # of all GPUs of the run


@dataclass(frozen=True)
class Bar:
    name: str
    text: str
    left: float  # both in percent of the width
    width: float


@dataclass(frozen=True)
class BarGroup:
    """Bars of one task. `mark`: where guessing is, in percent of the width."""

    label: str
    bars: list[Bar]
    mark: float


@dataclass(frozen=True)
class Content:
    """Everything in the report, in its order."""

    sections: list[SectionData]
    price_per_hour: float = 0.0

    # ---- results

    @cached_property
    def results(self) -> dict[str, dict[str, Score]]:
        """By label, then by column."""
        found: dict[str, dict[str, Score]] = {}
        for section in self.sections:
            for label, value in section.table.items() if section.column else ():
                score = Score(label, value, section.intervals.get(label))
                found.setdefault(label, {})[section.column] = score
        return found

    @cached_property
    def columns(self) -> list[str]:
        return [c for c in COLUMNS if any(c in scores for scores in self.results.values())]

    @property
    def has_intervals(self) -> bool:
        return any(score.interval for row in self.results.values() for score in row.values())

    def files(self, part: str) -> list[str]:
        """Files of the sections that have this part."""
        return [section.file for section in self.sections if getattr(section, part)]

    def files_naming(self, labels: Iterable[str]) -> list[str]:
        """Files of the sections with one of these labels in their results or rows."""
        wanted = set(labels)
        return [
            section.file
            for section in self.sections
            if wanted.intersection(section.table, (row[0] for row in section.rows))
        ]

    # ---- summary

    @cached_property
    def training(self) -> list[SectionData]:
        """Sections of the training stages, in their order."""
        by_name = {section.name: section for section in self.sections}
        return [by_name[name] for name in TRAINING if name in by_name]

    def summary(self) -> list[str]:
        """What was trained on what in which time, and how good it is."""
        return [self._trained(), self._quality()]

    def _trained(self) -> str:
        if not self.training:
            return "No model has been trained yet."
        first, *_ = self.training
        parameters = first.numbers.get("parameters")
        size = f"A model of {count(parameters)} parameters" if parameters else "A model"
        steps = [
            f"{count(tokens)} tokens in {TRAINING[section.name]}"
            for section in self.training
            if (tokens := section.numbers.get("tokens"))
        ]
        source = first.settings.get("source")
        text = f" on the text of {source}" if source else ""
        amount = f": {', '.join(steps)}" if steps else ""
        took = f"; it took {duration(self.seconds)} on {self.devices}" if self.seconds else ""
        return f"{size} was trained{text}{amount}{took}."

    def _quality(self) -> str:
        facts = []
        if score := self._last("all families"):
            facts.append(f"it answers {score.text} of the held-out questions right")
        if score := self._last("ChatCORE"):
            facts.append(f"its ChatCORE is {score.text}")
        if score := self._last("CORE"):
            facts.append(f"CORE of the base model is {score.text} ({beside_gpt2(score.value)})")
        if score := self.results.get("bits per byte, text", {}).get("BASE"):
            facts.append(f"the base model needs {score.text} bits per byte of unseen text")
        sentence = "; ".join(facts) or "how good it is has not been measured yet"
        return f"{sentence[0].upper()}{sentence[1:]}."

    def _last(self, label: str) -> Score | None:
        scores = list(self.results.get(label, {}).values())
        return scores[-1] if scores else None

    def commands(self) -> dict[str, str]:
        """How to talk to the model: where, and the command."""
        is_default = paths.base_dir() == Path("~/.cache/nanochat").expanduser()
        base = "" if is_default else f"NANOCHAT_BASE_DIR={shlex.quote(str(paths.base_dir()))} "
        return {
            "in the terminal": f"{base}python -m scripts.chat_cli",
            "in the browser": f"{base}python -m scripts.chat_web",
        }

    # ---- time and cost

    @cached_property
    def seconds(self) -> float:
        return sum(section.seconds for section in self.sections)

    @cached_property
    def gpus(self) -> list[str]:
        """The GPUs that the stages ran on; where no section says, those of this machine."""
        recorded = [s for s in self.sections if s.num_devices]
        if recorded:
            most = max(recorded, key=lambda section: section.num_devices)
            return [] if most.device == "cpu" else [most.device] * most.num_devices
        return _local_gpus()

    @cached_property
    def devices(self) -> str:
        if not self.gpus:
            return f"{psutil.cpu_count()} CPU cores"
        return f"{len(self.gpus)} x {', '.join(sorted(set(self.gpus)))}"

    def time(self) -> list[TimeRow]:
        """Wall clock of each section that says."""
        return [
            TimeRow(s.title, s.seconds, s.seconds * (s.num_devices or len(self.gpus)) / 3600)
            for s in self.sections
            if s.seconds
        ]

    def total(self) -> TimeRow:
        rows = self.time()
        return TimeRow("total", self.seconds, sum(row.device_hours for row in rows))

    @property
    def units(self) -> list[str]:
        """Headers of `amounts`."""
        units = ["minutes", "GPU hours"] if self.gpus else ["CPU minutes"]
        return [*units, "cost"] if self.price_per_hour else units

    def amounts(self, row: TimeRow) -> list[str]:
        """Minutes, GPU hours and, with a price, the cost."""
        cells = [f"{row.seconds / 60:.1f}" if row.seconds >= 3 else "< 0.1"]
        if self.gpus:
            cells.append(f"{row.device_hours:.2f}")
        if self.price_per_hour:
            cells.append(f"{self.price_per_hour * row.seconds / 3600:.2f}")
        return cells

    # ---- comparisons

    def core_bars(self) -> list[BarGroup]:
        """Centered accuracy on the tasks of CORE, beside the four sizes of GPT-2."""
        ours: dict[str, tuple[float, float]] = {}  # centered, chance in percent
        own = [section for section in self.sections if section.column]  # none: --hf_path
        for row in (row for s in own for row in s.rows[1:] if row[0] in GPT2_ACCURACY):
            try:
                ours[row[CORE_TASK]] = float(row[CORE_CENTERED]), float(row[CORE_CHANCE])
            except (IndexError, ValueError):  # written by another version
                continue
        groups = {}
        for task, (value, chance) in ours.items():
            published = [(a - chance) / (100 - chance) for a in GPT2_ACCURACY[task]]
            groups[task] = dict(
                zip(("this model", *(f"GPT-2 {n}" for n in GPT2)), [value, *published], strict=True)
            )
        return _bar_groups(groups, {}, "{:.3f}")

    def chat_bars(self) -> list[BarGroup]:
        """Accuracy in percent on the tasks of ChatCORE, by stage."""
        groups = {
            task: {column: 100 * score.value for column, score in self.results[task].items()}
            for task in CHAT_TASKS
            if task in self.results
        }
        return _bar_groups(groups, CHAT_TASKS, "{:.1f} %")

    def sandbox(self) -> dict[str, list[str]]:
        """The levels at which programs of the model ran, each with the files that say so."""
        levels: dict[str, list[str]] = {}
        for section in self.sections:
            for name, value in section.settings.items():
                if "sandbox" in name:
                    levels.setdefault(value, []).append(section.file)
        return levels

    def machine(self) -> dict[str, str]:
        """The machine that the report was generated on."""
        memory = psutil.virtual_memory().total / 2**30
        facts = {
            "generated": now(),
            "code": _commit(),
            "machine": f"{platform.system()} {platform.machine()}, {psutil.cpu_count()} cores,"
            f" {memory:.0f} GiB of memory",
            "GPU": self.devices if self.gpus else "none",
            "software": f"Python {platform.python_version()}, torch {version('torch')}",
            "base directory": str(paths.base_dir()),
        }
        return {name: value for name, value in facts.items() if value}


# ---- text of numbers


def explanation(label: str) -> str:
    """One line about a metric; empty for one that is not known."""
    name, _, k = label.partition(" pass@")
    if k:
        return f"How often one of {k} sampled answers is right, estimated without bias."
    if name.startswith("ChatCORE with"):
        return "Not ChatCORE, whose settings are others."
    return EXPLANATIONS.get(label, "")


def sources(section: SectionData) -> list[str]:
    """The files under the base directory that have the figures of a section, line by line."""
    files = [section.file]
    folder, tag = paths.STAGE_FOLDERS.get(section.name), section.settings.get("model_tag")
    if folder and tag:
        files.append(f"{folder}/{tag}/metrics.jsonl")
    stage = section.name.removeprefix("chat_eval_")
    if stage in paths.STAGE_FOLDERS and stage != section.name:
        files.append(f"chat_eval/{stage}_*.jsonl")
    return files


def count(number: float) -> str:
    """2.1 million, 143 thousand, 12."""
    for power, word in ((12, "trillion"), (9, "billion"), (6, "million"), (3, "thousand")):
        if number >= 10**power:
            return f"{number / 10**power:.3g} {word}"
    return f"{number:.0f}"


def duration(seconds: float) -> str:
    """45 seconds, 23 minutes, 3.9 hours."""
    for size, word in ((7200.0, "hour"), (90.0, "minute")):
        if seconds >= size:
            amount = seconds / (3600 if word == "hour" else 60)
            return f"{amount:.1f} {word}s" if amount < 10 else f"{amount:.0f} {word}s"
    return f"{seconds:.0f} seconds"


def beside_gpt2(core: float) -> str:
    """Between which sizes of GPT-2 a value of CORE is."""
    below = [f"{name} has {value:.4f}" for name, value in zip(GPT2, GPT2_CORE, strict=True)]
    num_below = sum(value <= core for value in GPT2_CORE)
    around = below[max(0, num_below - 1) : num_below + 1]
    return f"GPT-2 {' and '.join(around)}"


def _bar_groups(
    groups: dict[str, dict[str, float]], chances: dict[str, float], form: str
) -> list[BarGroup]:
    """Bars from 0 on a scale common to all groups."""
    values = [0.0, *(value for group in groups.values() for value in group.values())]
    low, width = min(values), (max(values) - min(values)) or 1.0

    def at(value: float) -> float:
        return round(100 * (value - low) / width, 2)

    return [
        BarGroup(
            label,
            [
                Bar(name, form.format(value), at(min(0.0, value)), at(low + abs(value)))
                for name, value in group.items()
            ],
            mark=at(chances.get(label, 0.0)),
        )
        for label, group in groups.items()
    ]


def _local_gpus() -> list[str]:
    import torch  # here, where it is needed: importing it takes seconds

    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty=, with uncommitted changes"]
    folder = Path(__file__).parents[2]  # the checkout; an installation is in no repository of ours
    if not (folder / ".git").exists():
        return ""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    return f"commit {done.stdout.strip()}" if done.returncode == 0 else ""
