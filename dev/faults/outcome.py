"""How often a fault was injected, and how often it did harm."""

from dataclasses import dataclass, field
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
