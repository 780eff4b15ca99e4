"""A real kernel: errors are errors to whatever runs notebooks, and progress is a widget."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.slow

SETUP = (
    "%load_ext kdkit\nimport torch\ntorch.set_num_threads(1)\n"
    "net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))\ndata = (torch.randn(16, 4), torch.arange(16) % 2)"
)


def run(*cells):
    import nbformat  # with its validation an import of 3 s, which collecting tests does not need
    from nbclient import NotebookClient

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    for cell in notebook.cells:
        cell.metadata["tags"] = ["raises-exception"] if "expected" in cell.source else []
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    NotebookClient(notebook, timeout=120).execute()
    return [cell.outputs for cell in notebook.cells]


def test_a_failing_line_fails_the_notebook():
    from nbclient.exceptions import CellExecutionError

    with pytest.raises(CellExecutionError, match="there is no model yet"):
        run("%load_ext kdkit", "%kd undo")


@pytest.fixture(scope="module")
def outputs():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDKIT_STABLE", "0")
        return run(
            SETUP,
            "%kd use net --train {data} --eval {data} --measures quality;",
            "%kd tune finetune --epochs 2",
            "%kd uze net  # expected",
            "%config KdMagics.stable = True",
            "%kd tune finetune --epochs 2",
        )


def test_a_semicolon_leaves_the_cell_without_output(outputs):
    assert not outputs[1]


def test_a_stage_shows_a_bar_with_a_stable_text_and_then_its_report(outputs):
    bar, report = outputs[2]
    assert "application/vnd.jupyter.widget-view+json" in bar.data
    assert bar.data["text/plain"] == "kdkit progress"
    assert report.data["text/plain"].startswith("@1: tune finetune --epochs 2")
    assert "<table" in report.data["text/html"]


def test_an_expected_error_is_an_error_output_without_a_traceback_and_the_rest_runs(outputs):
    (output,) = outputs[3]
    assert (output.output_type, output.ename) == ("error", "KdError")
    assert output.evalue.startswith("there is no verb or family 'uze'")
    assert not any("Traceback" in line for line in output.traceback)


def test_nothing_but_the_report_is_shown_while_outputs_are_compared(outputs):
    assert [output.output_type for output in outputs[5]] == ["execute_result"]
