"""Reports: what the checks found about a stage, as short stable text, as HTML, and as an error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kdkit.errors import KdError
from kdkit.notebook.page import Page
from kdkit.table import Table

if TYPE_CHECKING:
    from kdkit.testing.checks import Check


@dataclass(frozen=True)
class Finding:
    """One way in which a stage breaks a rule.

    Attributes:
        check: the rule that is broken.
        what: is wrong.
        where: name of the model it was seen on; empty where no model was needed.
    """

    check: Check
    what: str
    where: str = ""

    def __str__(self) -> str:
        return f"{self.check.name}{f' ({self.where})' if self.where else ''}: {self.what}"


@dataclass(frozen=True)
class Conformance:
    """How one stage stood the checks.

    Attributes:
        title: of the stage, as messages name it.
        checks: that were made, in order; of a class that is not whole its schema alone.
        findings: what is wrong; empty where the stage conforms.
        ran: names of the models it ran on.
        refused: name -> reason, for the models it does not fit.
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
        """One line: how many of the checks that were made hold, and on which models it ran."""
        held = f"{len(self.checks) - len(self.failed)} of {len(self.checks)} checks hold"
        ran = f"ran on {', '.join(self.ran) or 'no model'}"
        return "; ".join([f"{self.title}: {held}", ran, *([f"refused {', '.join(self.refused)}"] if self.refused else [])])

    def __repr__(self) -> str:
        lines = [self.summary]
        for finding in self.findings:
            lines += [f"  {finding}", f"    mend: {finding.check.mend}"]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        wrong = [[finding.check.name, finding.where, finding.what, finding.check.mend] for finding in self.findings]
        told = [[check.name, "broken" if check.name in self.failed else "holds", check.holds] for check in self.checks]
        parts = [
            self.summary,
            Table(["check", "model", "what is wrong", "how to mend it"], wrong) if wrong else "",
            Table(["check", "", "what it holds"], told),
            Table(["model", "why the stage refused it"], [[name, reason] for name, reason in self.refused.items()]) if self.refused else "",
        ]
        return Page(*parts)._repr_html_()


@dataclass(frozen=True)
class Conformances:
    """How all stages of a plugin stood the checks, one `Conformance` each."""

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
