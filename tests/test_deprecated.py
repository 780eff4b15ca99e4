"""Deprecated names: what kdkit 0.1.0 documented still works, with a warning that names the new place."""

from __future__ import annotations

import importlib
import subprocess
import sys
import warnings

import pytest

from kdkit.deprecated import MODULES, NAMES


@pytest.mark.parametrize(("module", "old"), [(module, old) for module, names in NAMES.items() for old in names])
def test_an_old_name_is_the_new_object_and_warns(module, old):
    home, _, name = NAMES[module][old].rpartition(".")
    with pytest.warns(DeprecationWarning, match=rf"{module}\.{old} is now called {NAMES[module][old]}"):
        found = getattr(importlib.import_module(module), old)
    assert found is getattr(importlib.import_module(home), name)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("kdkit.charts", "bar_chart"),
        ("kdkit.context", "Context"),
        ("kdkit.contract", "Stage"),
        ("kdkit.contract", "TrainStage"),
        ("kdkit.contract", "param"),
        ("kdkit.counting", "count_macs"),
        ("kdkit.counting", "count_parameters"),
        ("kdkit.hookspecs", "hookimpl"),
        ("kdkit.measure", "Figure"),
        ("kdkit.measure", "Measure"),
        ("kdkit.patterns", "select_layers"),
        ("kdkit.pipeline", "Pipeline"),
        ("kdkit.seeding", "seeded"),
        ("kdkit.table", "Table"),
        ("kdkit.tasks.contract", "IGNORED"),
        ("kdkit.usage", "linear_kinds"),
    ],
)
def test_a_module_of_the_first_release_still_has_its_names(module, name):
    with pytest.warns(DeprecationWarning, match=rf"{module}\.{name} is now called"):
        found = getattr(importlib.import_module(module), name)
    new = [face for face in MODULES[module] if name in importlib.import_module(face).__all__]
    assert found is getattr(importlib.import_module(new[0]), name)


@pytest.mark.parametrize(("module", "old", "new"), [("kdkit.patterns", "match", "select_layers"), ("kdkit.usage", "usage", "trace_layer_usage")])
def test_a_module_of_the_first_release_has_names_that_were_renamed_since(module, old, new):
    with pytest.warns(DeprecationWarning, match=rf"\.{old} is now called kdkit\.models\.{new}"):
        found = getattr(importlib.import_module(module), old)
    assert found is getattr(importlib.import_module("kdkit.models"), new)


@pytest.mark.parametrize("module", MODULES)
def test_an_old_module_has_nothing_but_what_its_successors_export(module):
    with pytest.raises(AttributeError, match=module):
        getattr(importlib.import_module(module), "no_such_name")  # noqa: B009


@pytest.mark.parametrize("module", NAMES)
def test_a_name_that_never_was_is_an_attribute_error(module):
    with pytest.raises(AttributeError, match="no_such_name"):
        getattr(importlib.import_module(module), "no_such_name")  # noqa: B009


@pytest.mark.parametrize(
    "line", ["from kdkit.data import Rows", "from kdkit.contract import Stage", "from kdkit.patterns import match", "from kdkit.testing.zoo import Guest"]
)
def test_the_warning_names_the_line_that_uses_the_old_name(line):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        exec(compile(line, "author.py", "exec"), {})
    assert {warning.filename for warning in caught if "is now called kdkit" in str(warning.message)} == {"author.py"}


@pytest.mark.parametrize("module", NAMES)
def test_no_name_is_public_and_deprecated_at_once(module):
    assert not set(NAMES[module]) & set(getattr(importlib.import_module(module), "__all__", ()))


def test_old_modules_cost_nothing_until_they_are_used():
    code = "import sys, kdkit.contract; sys.exit('torch' in sys.modules or 'pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_an_old_module_is_an_attribute_of_the_package_too():
    import kdkit.contract

    import kdkit

    with pytest.warns(DeprecationWarning, match="kdkit.contract.Stage is now called"):
        assert kdkit.contract.Stage is kdkit.Stage


def test_old_names_of_a_part_its_terms_and_a_version_work_and_warn():
    import torch

    from kdkit import Session, Term, TrainPart
    from kdkit.data import Batch
    from kdkit.tasks import Classification
    from kdkit.training import Step

    with pytest.warns(DeprecationWarning, match="Old.reweighted is now called option_for_weight"):

        class Old(TrainPart):
            def reweighted(self, term, factor, beside):
                return f"--weight {factor:g}"

    assert Old().option_for_weight("label", 0.5, "soft") == "--weight 0.5"
    batch = Batch((torch.eye(3),), {}, torch.arange(3))
    with pytest.warns(DeprecationWarning, match="Term.of_labels is now called from_labels"):
        assert Term.of_labels(Step(batch, torch.eye(3), torch.nn.Identity(), Classification(), 0, 0.0)).labels
    with pytest.warns(DeprecationWarning, match="Version.exhibits is now called attachments"):
        assert Session(torch.nn.Linear(2, 2), measures=()).head.exhibits == ()
