"""What an examination finds: lines with a level, a hint, and how it was seen. Plain data, sent between processes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

FAULT, WARNING, NOTE = "fault", "warning", "note"


@dataclass(frozen=True)
class Finding:
    """One line about an environment.

    Attributes:
        level: fault: training fails, or its results are wrong or cannot be repeated. warning: training works, but
            probably not as intended. note: worth knowing.
        kind:  a short name, for programs.
        seen:  how it was seen.
    """

    level: str
    kind: str
    text: str
    hint: str
    seen: str


@dataclass
class Report:
    """The result of an examination."""

    env: str
    findings: list[Finding] = field(default_factory=list)
    measured: dict[str, Any] = field(default_factory=dict)
    advice: list[str] = field(default_factory=list)

    @property
    def status(self) -> int:
        """Of the command: 1 if there is a fault or a warning."""
        return int(any(finding.level != NOTE for finding in self.findings))
