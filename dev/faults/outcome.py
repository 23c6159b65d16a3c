"""What a fault was tried for, how often, and how often it did harm."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Outcome:
    """One row of the table; `harms` says what went wrong each time."""

    fault: str
    harm: str
    """What would be harm."""
    tried: int = 0
    harms: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    """What else was counted or measured."""

    def expect(self, is_well: bool, otherwise: str) -> None:
        """Note a harm unless all is well."""
        if not is_well:
            self.harms.append(otherwise)

    def row(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "fault": self.fault, "harm": self.harm, "tried": self.tried,
            "harmed": len(self.harms), **self.facts, "harms": self.harms[:10],
        }  # fmt: skip
