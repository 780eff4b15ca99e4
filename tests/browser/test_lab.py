"""kdkit in a real JupyterLab, seen through a real browser."""

from __future__ import annotations

import re
from ast import literal_eval

import pytest

pytest.importorskip("axe_playwright_python", reason="playwright or axe-playwright-python is not installed (pip install -e '.[test]')")

from playwright.sync_api import expect

from tests.browser.axe import check, violations

SETUP = """\
%load_ext kdkit
import torch
from kdkit import notebook
torch.set_num_threads(1)
torch.manual_seed(0)
inputs, labels = torch.randn(64, 8), torch.arange(64) % 4
net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
train = (inputs, labels)
%kd use net --train {train} --eval {train} --measures quality parameters size --as base"""

LONG = "%kd tune finetune --steps 1000000 --as endless"
"""A training that no machine ends during a test; it is to be interrupted."""

SHOWN = {
    "status": "%kd",
    "report and curves": "%kd tune finetune --steps 40 --validation {train} --as tuned",
    "comparison": "%kd compare @base @tuned",
    "agreement": "%kd agreement @tuned --teacher @base",
    "techniques": "%kd list prune",
    "help": "%kd help tune finetune",
    "magics": "%kd code @tuned",
}
"""A line for each kind of output."""


@pytest.fixture(scope="module")
def session(notebook, lab):
    """A notebook with a session in it."""
    notebook.open(lab.write("session.ipynb", ""))
    notebook.run(SETUP)
    return notebook


@pytest.fixture(scope="module")
def cells(session):
    """The cells that show each kind of output, and an error."""
    return {kind: session.run(line) for kind, line in SHOWN.items()} | {"error": session.fail("%kd prune chanels")}


@pytest.mark.parametrize("kind", [*SHOWN, "error"])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_wrong_with(theme, kind, cells):
    cells[kind].notebook.theme(theme)
    check(cells[kind].output)


def test_axe_would_find_a_faint_text_and_a_picture_without_a_name(session):
    faint = session.run("""__import__("IPython").display.HTML('<p style="color: #ccc; background: #fff">faint</p><svg role="img"><path d="M0 0h9"/></svg>')""")
    assert [found.split()[0] for found in violations(faint.output)] == ["color-contrast", "svg-img-alt"]


def test_a_request_to_elsewhere_would_be_noticed(session):
    # the browser finds no other machine, so it fails
    session.page.evaluate("fetch('http://elsewhere.example/picture.png').catch(() => null)")
    assert session.outside == ["http://elsewhere.example/picture.png"]
    session.outside.clear()


def test_a_report_brings_its_table_and_its_curves(cells):
    output = cells["report and curves"].output
    short, complete = output.locator("table").all()
    expect(short).to_be_visible()
    expect(complete).to_be_hidden()
    output.get_by_text("All figures, and how they were measured").click()
    expect(complete).to_be_visible()
    expect(output.get_by_role("img", name=re.compile("Loss"))).to_be_visible()
    expect(output.get_by_role("img", name=re.compile("Validation"))).to_be_visible()


def test_agreement_brings_a_picture_of_where_two_models_differ(cells):
    expect(cells["agreement"].output.get_by_role("img").first).to_be_visible()


def test_an_error_is_shown_as_one_with_hints_and_without_a_traceback(cells):
    box = cells["error"].output.locator("[data-mime-type='application/vnd.jupyter.stderr']")
    expect(box).to_have_text(re.compile(r"^KdError: no technique 'chanels' in prune\s+hint: did you mean channels\?"))
    expect(box).not_to_contain_text("Traceback")
    expect(box.locator(".ansi-bold")).to_have_text("KdError")


@pytest.mark.parametrize(
    ("typed", "offered"),
    [("%kd prune ", "channels"), ("%kd tune finetune --optimizer ", "adamw"), ("%kd compare ", "@base"), ("%%kd small\ntune finetune --", "--steps")],
)
def test_tab_offers_what_may_come_next(typed, offered, session):
    session.add("").edit()
    session.page.keyboard.insert_text(typed)
    session.press("Tab")
    expect(session.page.locator(".jp-Completer-item code").get_by_text(offered, exact=True)).to_be_visible()
    session.press("Escape", "Escape")


def versions(session):
    return literal_eval(session.ask("[version.name for version in notebook.session(get_ipython()).versions]"))


@pytest.fixture
def training(session):
    """A cell in which a long training runs."""
    cell = session.start(LONG)
    cell.output.locator(".progress-bar").wait_for()
    yield cell
    if cell.prompt.inner_text() == "[*]:":
        cell.interrupt()
        cell.wait()


def test_bar_words_and_curves_move_while_a_training_runs(training):
    for part in (".progress-bar", "div.widget-label", ".widget-html-content"):
        shown = training.output.locator(part)
        for _ in range(2):
            before = shown.evaluate("part => part.outerHTML")
            shown.page.wait_for_function("([part, before]) => part.outerHTML !== before", arg=[shown.element_handle(), before])
    expect(training.output.get_by_role("img", name=re.compile("Loss"))).to_be_visible()
    expect(training.prompt).to_have_text("[*]:")


def test_an_interrupt_stops_a_training_and_leaves_the_session_intact(session, training):
    training.interrupt()
    training.wait()
    expect(training.output.locator("div.widget-label")).to_have_text("tune finetune · stopped")
    expect(training.output).to_contain_text("KeyboardInterrupt: interrupted; the session is unchanged; its head is @")
    assert session.ask("torch.is_grad_enabled()") == "True"
    assert "@endless" not in versions(session)
    session.run("%kd tune finetune --steps 2 --as after")
    assert versions(session)[-1] == "@after"
