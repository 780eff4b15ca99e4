"""What an author sees: the report, in a notebook, as an error, and in pytest."""

import json
import os
import re
from types import SimpleNamespace

import pytest
from torch import nn

from kdkit import KdError, param
from kdkit.testing import check_plugin, check_stage, conformance, subprocesses, zoo
from kdkit.testing.catalogue import CHECKS
from kdkit.testing.check import Check
from kdkit.testing.report import Conformance, Conformances, Finding
from tests.fixtures.defects import Narrow, Scale, Unseeded

pytestmark = pytest.mark.slow

RULE = Check("repeats", "it does the same again", "seed it", lambda case: iter(()))
OTHER = Check("copies", "it can be copied", "hold no locks", lambda case: iter(()))
WRONG = Conformance("prune mine", (RULE, OTHER), (Finding(RULE, "differs in <head>", "mlp"),), ("mlp",), {"cnn": "too deep"})


def test_a_report_shows_what_is_wrong_where_and_how_to_fix_it():
    assert repr(WRONG).splitlines() == [
        "prune mine: 1 of 2 checks hold; ran on mlp; refused cnn",
        "  repeats (mlp): differs in <head>",
        "    fix: seed it",
    ]


def test_a_report_as_html_lists_every_check_and_every_refusal_and_escapes_text():
    html = WRONG._repr_html_()
    assert "differs in &lt;head&gt;" in html
    assert "it can be copied" in html
    assert "too deep" in html


def test_require_raises_the_report_or_gives_it_back():
    with pytest.raises(KdError, match=re.escape(repr(WRONG))):
        WRONG.require()
    assert WRONG.of("copies").require().ok


def test_a_plugins_report_counts_the_stages_that_conform():
    both = Conformances("mine", (WRONG, WRONG.of("copies")))
    assert repr(both).startswith("mine: 1 of 2 stages conform\nprune mine: 1 of 2 checks hold")
    with pytest.raises(KdError, match="1 of 2 stages conform"):
        both.require()


def test_each_check_describes_its_rule_and_how_to_fix_a_violation():
    assert len({check.name for check in CHECKS}) == len(CHECKS) == 17
    for check in CHECKS:
        assert check.holds
        assert check.fix


def test_a_model_that_does_not_fit_is_refused_with_its_reason_and_is_no_failure():
    report = check_stage(Narrow, models=["mlp", "cnn"])
    assert report.ok
    assert report.ran == ("mlp",)
    assert report.refused == {"cnn": "prune test-narrow knows only models with a layer named first"}


def test_a_stage_can_be_checked_as_an_instance_or_a_line():
    assert check_stage(Scale(factor=0.25), models=["mlp"]).ok
    assert check_stage("%kd decompose svd --ratio 0.4", models=["mlp"]).title == "decompose svd"


def test_a_declaration_that_lacks_bounds_keeps_no_other_check_from_being_made():
    class Unbounded(Unseeded):
        """A number that may be anything."""

        __module__ = Scale.__module__  # this one imports pytest
        strength: float = param(1.0, "of the work")

    report = check_stage(Unbounded, models=["mlp"])
    assert report.failed == ("schema", "repeats")
    assert report.ran == ("mlp",)


def test_an_incomplete_class_is_reported_by_its_schema_alone():
    class Undescribed(Scale):
        __doc__ = ""

    assert check_stage(Undescribed, models=["mlp"]).summary == "tune test-scale: 0 of 1 checks hold; ran on no model"
    test = conformance(Undescribed, models=["mlp"])
    with pytest.raises(pytest.fail.Exception, match="has no docstring"):
        test(0, "schema")
    with pytest.raises(pytest.skip.Exception, match="its class is incomplete"):
        test(0, "untouched")


def test_an_error_is_reported_with_the_line_of_the_author_and_not_of_torch():
    class Clumsy(Scale):
        """Multiply what does not fit."""

        def apply(self, model, context):
            nn.Linear(2, 2)(model.first.weight)

    # this module imports pytest, which may take longer than a plugin's module may
    [found] = [found for found in check_stage(Clumsy, models=["mlp"]).findings if found.where]
    assert re.search(r"\(test_report.py, line \d+: nn.Linear\(2, 2\)\(model.first.weight\)\)$", found.what)


def test_what_is_not_there_is_reported_by_name():
    with pytest.raises(KdError, match="the zoo has no 'mpl'") as caught:
        check_stage(Scale, models=["mpl"])
    assert caught.value.hints[0] == "did you mean mlp?"
    with pytest.raises(KdError, match="no plugin 'tuen'"):
        check_plugin("tuen")
    with pytest.raises(KdError, match="plugin measures offers no stage"):
        check_plugin("measures")


class Boastful(nn.Module):
    """A model that says less of itself than there is."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)

    def kdkit_parameters(self):
        return 1

    def kdkit_macs(self, batch):
        return 1


def test_figures_that_a_model_reports_about_itself_are_counted_again():
    class Wrapping(Scale):
        """Wrap the model in one that answers for itself."""

        def apply(self, model, context):
            return Boastful(model)

    found = [finding.what for finding in check_stage(Wrapping, models=["mlp"]).of("figures").findings]
    assert [re.sub(r"\d[\d,]*", "N", what.replace(", and", " and")) for what in found] == [
        f"its model reports N {figure} and its tensors have N" for figure in ("parameters", "MACs")
    ]


VOLUMES = """
import torch
from torch import nn
from kdkit import Batch
from kdkit.testing.zoo import CustomModel

class Volumes(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv3d(1, 4, 3), nn.Linear(32, 2)

    def forward(self, x):
        return self.head(self.conv(x).flatten(1))

volumes = CustomModel(Volumes, lambda items, random: Batch((torch.randn(items, 1, 4, 4, 4, generator=random),), labels=torch.arange(items) % 2))
nothing = 3
"""


@pytest.fixture
def my_models(tmp_path, monkeypatch):
    (tmp_path / "my_models.py").write_text(VOLUMES)
    monkeypatch.syspath_prepend(tmp_path)
    subprocesses._server.cache_clear()  # one that runs already does not know the folder
    yield
    subprocesses._server.cache_clear()


def test_an_authors_own_model_is_tried_as_the_zoos_are(my_models):
    class Volumetric(Scale):
        """Halve the weights of 3d convolutions."""

        __module__ = Scale.__module__  # this one imports pytest

        def check(self, model, context):
            if not any(isinstance(layer, nn.Conv3d) for layer in model.modules()):
                yield "it has no volumes"

    report = check_stage(Volumetric, models=["mlp", "my_models:volumes"])
    assert report.ran == ("my_models:volumes",)
    assert report.refused == {"mlp": "tune test-scale: it has no volumes"}
    assert report.ok, report


@pytest.mark.parametrize(
    ("name", "stated"), [("my_models:none", "has no attribute 'none'"), ("none:at_all", "No module named 'none'"), ("my_models:nothing", "is a int")]
)
def test_an_own_model_that_is_not_there_is_reported(my_models, name, stated):
    with pytest.raises(KdError, match=stated):
        check_stage(Scale, models=[name])


def test_the_stages_of_the_session_are_as_before(offered):
    from kdkit.plugins.manager import manager

    offered(Scale)
    check_stage(Unseeded, models=["mlp"])
    assert manager().stage("tune.test-scale") is Scale


def test_pytest_gets_a_case_for_each_stage_and_check_and_a_failure_without_traceback():
    test = conformance(Scale, Unseeded, "tune finetune --epochs 2", models=["mlp"])
    stages, checks = sorted(test.pytestmark, key=lambda mark: mark.args[0] != "number")
    assert stages.kwargs["ids"] == ["tune test-scale", "tune test-scale", "tune finetune --epochs 2"]
    assert checks.args == ("check", [check.name for check in CHECKS])
    test(0, "repeats")
    test(1, "copies")
    with pytest.raises(pytest.fail.Exception, match=r"repeats \(mlp\): a second run differs in numbers of") as failed:
        test(1, "repeats")
    assert "fix: use the global generators of torch, numpy or random" in str(failed.value)
    assert not failed.value.pytrace


def test_an_interrupted_question_leaves_no_answer_behind_for_the_next(monkeypatch):
    def interrupted(*given):
        raise KeyboardInterrupt

    first = subprocesses._server("load")
    with monkeypatch.context() as patch:
        patch.setattr(subprocesses, "json", SimpleNamespace(dumps=json.dumps, loads=interrupted))
        with pytest.raises(KeyboardInterrupt):
            subprocesses.load_time("ast")
    assert first.wait(10) != 0
    assert subprocesses.load_time("ast")["seconds"] >= 0


def test_an_interrupt_of_the_notebook_does_not_reach_the_fresh_process():
    assert os.getpgid(subprocesses._server("load").pid) != os.getpgid(0)


@pytest.mark.parametrize("name", zoo.MODELS)
def test_the_zoo_is_the_same_each_time_and_another_for_another_seed(name):
    from kdkit.testing.fingerprint import changes, fingerprint

    first = zoo.make(name)
    assert not changes(fingerprint(first), fingerprint(zoo.make(name)))
    assert changes(fingerprint(first), fingerprint(zoo.make(name, seed=1)))
    assert first is not zoo.make(name)
    assert zoo.data(name).example().call(first) is not None


def test_the_tokenizer_speaks_the_zoos_vocabulary():
    assert zoo.tokenizer()("w3 w95")["input_ids"] == [3, 95]
