"""Every conformance check, in the order in which reports show them."""

from __future__ import annotations

from kdkit.testing import behaviour_checks, declaration_checks
from kdkit.testing.check import Check

CHECKS = tuple(value for module in (declaration_checks, behaviour_checks) for value in vars(module).values() if isinstance(value, Check))
