"""Energy counters of the machine."""

from __future__ import annotations

import pytest

from kdkit.measurement import builtin
from kdkit.measurement.energy import rapl
from tests.fixtures.measuring import measure, names, subject


def powercap(root, **domains):
    for index, (name, microjoules) in enumerate(domains.items()):
        folder = root / f"intel-rapl:{index}"
        folder.mkdir(exist_ok=True)
        for file, content in (("name", name.replace("_", "-")), ("energy_uj", microjoules), ("max_energy_range_uj", 10_000_000)):
            (folder / file).write_text(f"{content}\n")
    return root


def test_energy_is_the_sum_over_the_packages_and_survives_a_counter_that_runs_over(tmp_path):
    powercap(tmp_path, package_0=9_000_000, package_1=0, psys=5)
    joules = rapl(tmp_path)
    before = joules()
    powercap(tmp_path, package_0=1_000_000, package_1=3_000_000, psys=4_000_000)
    assert joules() - before == pytest.approx(2 + 3)


def test_energy_is_absent_where_the_machine_cannot_tell(tmp_path, monkeypatch):
    assert rapl(tmp_path) is None
    monkeypatch.setattr(builtin, "rapl", lambda: None)
    report = measure(subject(), names("energy"))
    assert (len(report), report.notes) == (0, ())
