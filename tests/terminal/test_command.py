"""`python -m kdkit`: a recipe runs on a server, with an exit code and messages without tracebacks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kdkit import KdError, Session
from kdkit.measurement.size import count_parameters
from kdkit.pipelines.pipeline import Pipeline
from kdkit.terminal.command import main, make_object
from kdkit.testing import zoo

NETS = """
import functools

from kdkit.testing import zoo

net = zoo.mlp()

class Nested:
    make = staticmethod(zoo.mlp)

def make():
    return zoo.mlp()

def data():
    return dict(eval=zoo.data("mlp"), calib=zoo.data("mlp"))

def two_models():
    return dict(eval=zoo.data("mlp"), model=net)

@functools.cache
def cached():
    return zoo.mlp()

def one_batch():
    return {"x": zoo.batch("mlp").args[0], "labels": zoo.batch("mlp").labels}

class Lazy:
    def __getattr__(self, name):
        raise RuntimeError("not today")

lazy = Lazy()

def leave():
    raise SystemExit(0)

def fail():
    raise ValueError("no disk")
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "nets_of_test", raising=False)
    (tmp_path / "nets_of_test.py").write_text(NETS)
    Pipeline(Pipeline.from_lines("prune channels --ratio 0.5").stages, "slim").save(tmp_path / "slim.yaml")
    return tmp_path


@pytest.mark.slow
def test_a_recipe_runs_in_a_process_of_its_own_and_the_last_version_is_saved(place: Path) -> None:
    line = [sys.executable, "-m", "kdkit", "run", "slim.yaml", "--model", "nets_of_test:make", "--data", "nets_of_test:data", "--out", "small", "--seed", "3"]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    assert "@base" in done.stdout
    assert "prune channels" in done.stdout
    assert f"saved in {place / 'small'}" in done.stdout
    loaded = Session(zoo.mlp(), measures=()).load(place / "small")
    assert count_parameters(loaded.model) < count_parameters(zoo.mlp())


@pytest.mark.slow
def test_another_version_in_the_folder_is_replaced_only_on_demand(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["run", "slim.yaml", "--model", "nets_of_test:make", "--data", "nets_of_test:data", "--out", "small"]
    assert main(line) == 0
    Pipeline(Pipeline.from_lines("prune channels --ratio 0.3").stages, "slim").save(place / "slim.yaml")
    assert main(line) == 1
    assert "--force" in capsys.readouterr().err
    assert main([*line, "--force"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone.yaml", "--model", "nets_of_test:make"], "gone.yaml"),
        (["slim.yaml", "--model", "nets_of_test"], "does not name an object"),
        (["slim.yaml", "--model", "nets_of_test:mak"], "did you mean make?"),
        (["slim.yaml", "--model", "nowhere_of_test:make"], "the module nowhere_of_test can't be imported"),
        (["slim.yaml", "--model", "nets_of_test:fail"], "nets_of_test:fail failed: ValueError: no disk"),
        (["slim.yaml", "--model", "nets_of_test:NETS_OF_TEST"], "nets_of_test has no NETS_OF_TEST"),
        (["slim.yaml", "--model", "builtins:dict"], "dict is not a model"),
        (["slim.yaml", "--model", "nets_of_test:leave"], "nets_of_test:leave failed: SystemExit: 0"),
        (["slim.yaml", "--model", "nets_of_test:lazy.part"], "nets_of_test:lazy.part can't be read: RuntimeError: not today"),
        (["slim.yaml", "--model", "nets_of_test:make", "--data", "nets_of_test:two_models"], "has 'model', which is no setting"),
        (["slim.yaml", "--model", "nets_of_test:make", "--data", "nets_of_test:data", "--out", "slim.yaml"], "a version is saved in a folder"),
        (["slim.yaml", "--model", "nets_of_test:make", "--data", "nets_of_test:data", "--out", "."], "kdkit did not write it"),
    ],
)
def test_what_can_not_be_done_is_one_message_on_stderr_and_exit_code_1(place: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert main(["run", *arguments]) == 1
    shown = capsys.readouterr()
    assert message in shown.err
    assert "Traceback" not in shown.err
    assert shown.out == ""


def test_a_line_that_is_not_understood_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["run"])
    assert caught.value.code == 2
    assert "recipe" in capsys.readouterr().err


def test_an_interrupt_ends_with_its_own_exit_code(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*given: object, **named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Session, "run", interrupt)
    assert main(["run", "slim.yaml", "--model", "nets_of_test:make"]) == 130
    assert "no version was saved" in capsys.readouterr().err


def test_an_object_is_taken_as_it_is_and_a_nested_function_is_called(place: Path) -> None:
    assert make_object("nets_of_test:net") is sys.modules["nets_of_test"].net
    assert isinstance(make_object("nets_of_test:Nested.make"), type(zoo.mlp()))
    assert isinstance(make_object("nets_of_test:cached"), type(zoo.mlp()))
    with pytest.raises(KdError, match="write MODULE:NAME|does not name"):
        make_object(":make")


@pytest.mark.slow
def test_the_doctor_examines_the_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    assert "onnxruntime" in capsys.readouterr().out


@pytest.mark.slow
def test_the_version_is_saved_before_anything_is_printed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: object, **named: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("builtins.print", broken)
    assert main(["run", "slim.yaml", "--model", "nets_of_test:make", "--data", "nets_of_test:data", "--out", "small"]) == 1
    assert (place / "small" / "kd.json").exists()


@pytest.mark.slow
def test_a_dict_that_is_one_batch_is_data(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "slim.yaml", "--model", "nets_of_test:make", "--data", "nets_of_test:one_batch"]) == 0, capsys.readouterr().err
    assert "accuracy" in capsys.readouterr().out


@pytest.mark.slow
def test_a_reader_that_ends_early_loses_no_version_and_sees_no_traceback(place: Path) -> None:
    line = f"'{sys.executable}' -m kdkit run slim.yaml --model nets_of_test:make --data nets_of_test:data --out small | head -c 0"
    done = subprocess.run(line, shell=True, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert (place / "small" / "kd.json").exists()
