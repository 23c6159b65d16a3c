"""How often a fault was injected, and how often it did harm."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Outcome:
    """One row of the table."""

    fault: str
    harm: str  # what counts as harm
    tried: int = 0
    harms: list[str] = field(default_factory=list)  # what went wrong, each time
    facts: dict[str, Any] = field(default_factory=dict)  # what else was counted or measured

    def expect(self, is_true: bool, otherwise: str) -> None:
        """Record a harm unless the condition holds."""
        if not is_true:
            self.harms.append(otherwise)

    def row(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "fault": self.fault, "harm": self.harm, "tried": self.tried,
            "harmed": len(self.harms), **self.facts, "harms": self.harms[:10],
        }  # fmt: skip


Group = Callable[[], Iterable[Outcome]]
"""Injects some faults; yields a row for each."""


@dataclass(frozen=True)
class Setting:
    """What every group of faults is given."""

    folder: Path  # for files; each group makes folders of its own in it
    is_quick: bool  # only a few trials of each fault
    seed: int

    def count(self, full: int, few: int) -> int:
        """The number of trials: `full`, or `few` with --quick."""
        return few if self.is_quick else full
