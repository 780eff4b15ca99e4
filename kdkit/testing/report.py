"""Conformance reports: the findings of the checks as short stable text, as HTML, and as an error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kdkit.display.page import Page
from kdkit.display.table import Table
from kdkit.errors import KdError

if TYPE_CHECKING:
    from kdkit.testing.check import Check


@dataclass(frozen=True)
class Finding:
    """One violation of a rule.

    Attributes:
        check: the rule.
        what: what is wrong.
        where: name of the model where it happened; empty where no model was needed.
    """

    check: Check
    what: str
    where: str = ""

    def __str__(self) -> str:
        return f"{self.check.name}{f' ({self.where})' if self.where else ''}: {self.what}"


@dataclass(frozen=True)
class Conformance:
    """The result of all checks for one stage.

    Attributes:
        title: the stage's name in messages.
        checks: the checks that ran, in order; only `schema` for an incomplete class.
        findings: what is wrong; empty where the stage conforms.
        ran: names of the models that it ran on.
        refused: name -> reason, for the models that it does not suit.
    """

    title: str
    checks: tuple[Check, ...]
    findings: tuple[Finding, ...] = ()
    ran: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings

    @property
    def failed(self) -> tuple[str, ...]:
        """Names of the checks that did not hold."""
        return tuple(dict.fromkeys(finding.check.name for finding in self.findings))

    def of(self, check: str) -> Conformance:
        """The report of one check alone."""
        return Conformance(
            self.title,
            tuple(each for each in self.checks if each.name == check),
            tuple(each for each in self.findings if each.check.name == check),
            self.ran,
            self.refused,
        )

    def require(self) -> Conformance:
        """The report itself, where the stage conforms.

        Raises:
            KdError: it does not; the message is the report.
        """
        if not self.ok:
            raise KdError(repr(self))
        return self

    @property
    def summary(self) -> str:
        """One line: how many checks hold, and the models that the stage ran on."""
        held = f"{len(self.checks) - len(self.failed)} of {len(self.checks)} checks hold"
        ran = f"ran on {', '.join(self.ran) or 'no model'}"
        return "; ".join([f"{self.title}: {held}", ran, *([f"refused {', '.join(self.refused)}"] if self.refused else [])])

    def __repr__(self) -> str:
        lines = [self.summary]
        for finding in self.findings:
            lines += [f"  {finding}", f"    fix: {finding.check.fix}"]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        wrong = [[finding.check.name, finding.where, finding.what, finding.check.fix] for finding in self.findings]
        rules = [[check.name, "broken" if check.name in self.failed else "holds", check.holds] for check in self.checks]
        parts = [
            self.summary,
            Table(["check", "model", "what is wrong", "how to fix it"], wrong) if wrong else "",
            Table(["check", "", "rule"], rules),
            Table(["model", "why the stage refused it"], [[name, reason] for name, reason in self.refused.items()]) if self.refused else "",
        ]
        return Page(*parts)._repr_html_()


@dataclass(frozen=True)
class Conformances:
    """The results for all stages of a plugin, one `Conformance` each."""

    title: str
    stages: tuple[Conformance, ...]

    @property
    def ok(self) -> bool:
        """Whether all conform."""
        return all(stage.ok for stage in self.stages)

    def require(self) -> Conformances:
        """The report itself, where all stages conform.

        Raises:
            KdError: some do not; the message is the report.
        """
        if not self.ok:
            raise KdError(repr(self))
        return self

    @property
    def summary(self) -> str:
        """One line: how many stages conform."""
        return f"{self.title}: {sum(stage.ok for stage in self.stages)} of {len(self.stages)} stages conform"

    def __repr__(self) -> str:
        return "\n".join([self.summary, *map(repr, self.stages)])

    def _repr_html_(self) -> str:
        return Page(self.summary, *self.stages)._repr_html_()
