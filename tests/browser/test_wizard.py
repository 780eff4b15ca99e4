"""A session by keyboard in a real JupyterLab: the wizard builds, runs, cancels, compares and exports, and its report remains without a kernel.

The tests build on one another.
"""

from __future__ import annotations

import re
import time
from ast import literal_eval

import pytest

pytest.importorskip("axe_playwright_python", reason="playwright or axe-playwright-python is not installed (pip install -e '.[test]')")

from playwright.sync_api import expect

import kdkit.notebook.verbs  # noqa: F401 - declares the verbs
from kdkit.notebook.verb import verbs
from tests.browser.axe import check
from tests.browser.walker import Walker

SETUP = """\
%load_ext kdkit
import torch
from kdkit import notebook
from sklearn.datasets import load_digits
from torch import nn
torch.set_num_threads(1)
torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
labels = torch.tensor(digits.target)
train, held = (images[:1200], labels[:1200]), (images[1200:], labels[1200:])
net = nn.Sequential(
    nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
    nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10),
)
optimizer = torch.optim.AdamW(net.parameters(), 1e-2)
for _ in range(8):
    for chosen in torch.randperm(1200).split(64):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(train[0][chosen]), train[1][chosen]).backward()
        optimizer.step()
"""
"""A small net that classifies digits."""

USED = "%kd use {net} --train {train} --eval {held} --measures quality parameters size"
RECORD_MESSAGES = """form => {
    addEventListener('keydown', () => { window.pressed = performance.now(); window.messages = []; }, true);
    new MutationObserver(changes => {
        for (const { target } of changes) window.messages.push([(performance.now() - window.pressed) / 1000, target.textContent]);
    }).observe(form, { childList: true, subtree: true, characterData: true });
}"""
"""Records each text that the form shows after a key, and the seconds since the key."""

BUILT = "%%kd small\nprune channels --ratio 0.25\ntune finetune --epochs 8\nquantize static"
RUN = BUILT.replace("small", "small --on @base")
PICTURES = ("compare", "pareto", "layers", "weights", "agreement", "confusion", "sensitivity")


class Wizard(Walker):
    """A walker in a wizard, and the parts of the form."""

    def __init__(self, cell):
        super().__init__(cell.notebook.page, cell.output.locator(".kdkit-wizard"))
        self.notebook, self.cell, self.form = cell.notebook, cell, self.area

    def enter(self):
        """Move the focus from the cell into the form, past the cell's own button."""
        self.notebook.press("Tab", "Tab")
        self.stays()

    @property
    def lines(self):
        """The magic lines that do the same."""
        return self.form.locator("pre").last

    @property
    def status(self):
        return self.form.get_by_role("status")

    @property
    def report(self):
        """The report below the form."""
        return self.cell.output.locator(".jp-RenderedHTMLCommon").filter(has_text="This report stays in the notebook.").last

    def messages(self, words):
        """The messages since the last key that match a pattern, with their seconds."""
        return [(after, text) for after, text in self.notebook.page.evaluate("() => window.messages") if re.search(words, text)]

    def step(self, number):
        """The card of a step."""
        return self.form.locator(".kdkit-card:visible").nth(number)

    def technique(self, stage, **fields):
        """Choose a technique in the palette and fill its fields."""
        self.press("Add a step")
        expect(self.form.get_by_role("textbox", name="search")).to_be_focused()
        self.choose("family", stage.split()[0])
        self.press(stage)
        for name, value in fields.items():
            self.write("textbox", name, value)


@pytest.fixture(scope="module")
def wizard(notebook, lab):
    """A new wizard with the focus on its first control."""
    notebook.open(lab.write("digits.ipynb", SETUP))
    # if no cell was run, Lab asks whether a widget's button may be trusted
    notebook.cell(0).select()
    notebook.cell(0).start()
    notebook.cell(0).wait()
    cell = notebook.add("%kd wizard")
    began = time.monotonic()
    notebook.press("Control+Enter")
    opened = Wizard(cell)
    opened.form.get_by_role("tab").first.wait_for()
    print(f"form after {time.monotonic() - began:.2f} s")
    cell.wait()
    opened.form.evaluate(RECORD_MESSAGES)
    opened.enter()
    return opened


@pytest.fixture(scope="module")
def begun(wizard):
    """A session with the net and its data."""
    expect(wizard.lines).to_have_text("%kd use {net}")
    wizard.choose("train", "train")
    wizard.choose("eval", "held")
    wizard.press("Change task")
    wizard.press("More settings")
    wizard.write("textbox", "measures", "quality parameters size")
    expect(wizard.lines).to_have_text(USED)
    wizard.press("Start")
    expect(wizard.status).to_have_text(re.compile("taking the model: done"))
    return wizard


@pytest.fixture(scope="module")
def built(begun):
    """A pipeline of three stages, added in a wrong order, then moved and changed."""
    begun.open("Build")
    begun.technique("quantize static")
    begun.press("Add step")
    expect(begun.lines).to_have_text("%kd quantize static")
    begun.technique("prune channels")
    expect(begun.form).to_contain_text("put prune channels before quantize static (step 1)")
    expect(begun.form.get_by_role("textbox", name="ratio", exact=True)).to_be_focused()
    begun.press("Add step")
    expect(begun.step(2)).to_contain_text("✗ not valid here: prune channels (step 2) needs float weights")
    expect(begun.form.get_by_role("button", name="Predict")).to_be_disabled()
    begun.press("Earlier 2")
    expect(begun.lines).to_have_text("%%kd\nprune channels\nquantize static")
    expect(begun.form.get_by_role("button", name="Earlier 1")).to_be_focused()
    begun.technique("tune finetune", epochs="8")
    slider = begun.to("slider", "epochs, slider")
    expect(slider).to_have_attribute("aria-valuetext", "8")
    begun.keys.press("ArrowRight")
    expect(begun.form.get_by_role("textbox", name="epochs", exact=True)).to_have_value("8.1")
    begun.keys.press("ArrowLeft")
    expect(slider).to_have_attribute("aria-valuetext", "8")
    begun.press("Add step")
    begun.press("Earlier 3")
    expect(begun.lines).to_have_text("%%kd\nprune channels\ntune finetune --epochs 8\nquantize static")
    begun.press("Edit 1")
    expect(begun.status).to_have_text(re.compile("^editing step 1"))
    begun.write("textbox", "ratio", "0.25")
    begun.press("Change step")
    expect(begun.form.get_by_role("button", name="Edit 1")).to_be_focused()
    begun.press("Start version, label, seed")
    begun.write("textbox", "as", "small")
    expect(begun.lines).to_have_text(BUILT)
    return begun


@pytest.fixture(scope="module")
def finished(built):
    """The wizard after it ran the pipeline."""
    built.open("Run")
    built.press("Run")
    expect(built.status).to_have_text(re.compile("running the pipeline: done after"))
    expect(built.lines).to_have_text(RUN)
    return built


def versions(wizard):
    return literal_eval(wizard.notebook.ask("[version.name for version in notebook.session(get_ipython()).versions]"))


def test_a_new_session_recognises_its_data_and_task(begun):
    expect(begun.form).to_contain_text("arrays of (x, y): 1200 items")
    expect(begun.form).to_contain_text("classification, since outputs (batch, 10) and integer labels.")
    begun.press("Change data")
    expect(begun.to("combobox", "train").locator("option:checked")).to_have_text("(not set)")
    begun.press("Change data")
    begun.open("Layers")
    expect(begun.form).to_contain_text("1.17 k parameters")
    expect(begun.lines).to_have_text("%kd layers")


def test_pipelines_are_proposed_and_read_by_axe(begun):
    begun.open("Start")
    begun.press("Propose pipelines")
    for goal in ("smaller", "faster", "least risk"):
        expect(begun.form.get_by_role("button", name=f"Choose {goal}")).to_be_visible()
    expect(begun.form).to_contain_text("risk for quality: low: no weight is removed")
    check(begun.form)


def test_a_pipeline_is_built_reordered_edited_validated_and_predicted(built):
    expect(built.step(1)).to_contain_text(re.compile("1. prune channels.*--ratio 0.25.*✓ fits", re.DOTALL))
    expect(built.step(2)).to_contain_text(re.compile("2. tune finetune.*--epochs 8.*✓ fits", re.DOTALL))
    expect(built.step(3)).to_contain_text(re.compile("3. quantize static.*✓ fits, with convert onnx inserted before it", re.DOTALL))
    built.press("Predict")
    expect(built.step(1).get_by_role("row", name=re.compile("^parameters .* → 1.21 k"))).to_be_visible()
    expect(built.step(2).get_by_role("row", name=re.compile("^parameters 1.21 k as before"))).to_be_visible()


def test_a_card_is_moved_by_drag_and_back_by_its_button(built):
    before = built.lines.inner_text()
    built.step(3).drag_to(built.step(2))
    expect(built.step(2)).to_contain_text("quantize static")
    expect(built.step(3)).to_contain_text("✗ not valid here")
    built.press("Later 2")
    expect(built.lines).to_have_text(before)


def test_progress_moves_while_a_pipeline_runs_and_it_ends_with_a_report(finished):
    messages = finished.messages("^tune finetune .* loss")
    print(f"progress after {finished.messages('step 1 of 3')[0][0]:.2f} s, {len(messages)} times in the training")
    assert len({text for _, text in messages}) > 1
    expect(finished.form).to_contain_text("3 of 3 stages done")
    expect(finished.form.get_by_role("table").filter(has_text="accuracy").last).to_contain_text("1.21 k")
    finished.stays()
    assert "@small" in versions(finished)


def test_a_training_is_cancelled_at_once_and_the_session_is_unchanged(finished):
    finished.press("Continue from the result")
    expect(finished.form.get_by_role("textbox", name="search")).to_be_focused()
    if not finished.form.get_by_role("combobox", name="on", exact=True).is_visible():
        finished.press("Start version, label, seed")
    finished.choose("on", "@base")
    finished.technique("tune finetune", epochs="100000")
    finished.press("Add step")
    expect(finished.lines).to_have_text("%kd tune finetune --epochs 100000 --on @base")
    finished.open("Run")
    finished.press("Run")
    expect(finished.form.get_by_role("button", name="Cancel")).to_be_focused()
    finished.form.get_by_text(re.compile("finetune · epoch .* loss")).wait_for()
    before = versions(finished)
    finished.press("Cancel")
    expect(finished.status).to_have_text(re.compile("cancelled after"))
    took = finished.messages("cancelled after")[0][0]
    print(f"cancelled after {took:.2f} s")
    assert took < 3, "the machine may be busy; another test checks one second without a browser"
    expect(finished.form).to_contain_text("Stopped: tune finetune was cancelled")
    assert versions(finished) == before
    assert finished.notebook.ask("torch.is_grad_enabled()") == "True"


def test_every_point_of_the_frontier_is_reached_by_keyboard_and_labelled(finished):
    finished.open("Results")
    expect(finished.lines).to_have_text("%kd pareto")
    for name in ("@base", "@1", "@2", "@3", "@small"):
        point = finished.to("listitem", re.compile(f"^{name}: size .* kB, accuracy 0.*, (on the frontier|behind @)"))
        expect(point).to_be_focused()
    finished.keys.press("Enter")
    expect(finished.form.get_by_role("combobox", name="chosen version").locator("option:checked")).to_have_text("@small")


def test_a_version_is_saved_and_exported_to_the_path_of_the_line(finished, lab):
    finished.open("Export")
    for word, path in (("save", "kept"), ("export", "small.onnx")):
        finished.choose("as", word)
        # the form of the verb before goes last
        expect(finished.form.get_by_text(verbs()[word].model_fields["path"].description, exact=True)).to_be_visible()
        finished.write("textbox", "path", path)
        expect(finished.lines).to_have_text(f"%kd {word} {path}")
        finished.press("Write")
        expect(finished.status).to_have_text(re.compile(f"^{word}: done"))
        assert (lab.folder / path).exists()


def test_the_lines_are_inserted_into_a_new_cell_below(finished):
    finished.choose("as", "code")
    finished.press("Write")
    finished.form.get_by_text("%kd quantize static").wait_for()
    expect(finished.lines).to_have_text("%kd code")
    button = finished.form.get_by_role("button", name="Insert below").last
    finished.go(button)
    before = finished.notebook.sources()
    finished.keys.press("Enter")
    expect(finished.notebook.page.locator(".jp-Notebook-cell")).to_have_count(len(before) + 1)
    assert finished.notebook.sources() == [*before, "%kd code"]
    # back to the form, by keyboard
    finished.notebook.press("ArrowUp")
    finished.enter()


@pytest.fixture(scope="module")
def troubled(finished):
    """A pipeline whose last step is invalid at its place, and the error after Run."""
    finished.open("Build")
    for stage in ("quantize static", "prune channels"):
        finished.technique(stage)
        finished.press("Add step")
    expect(finished.step(3)).to_contain_text("✗ not valid here")
    finished.open("Run")
    finished.press("Run")
    expect(finished.form).to_contain_text("✗ Error: prune channels")
    return finished


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_no_violation_in_any_tab_error_or_report(theme, troubled):
    troubled.notebook.theme(theme)
    troubled.press("Run")
    expect(troubled.form).to_contain_text("✗ Error")
    check(troubled.form)
    for tab in ("Start", "Build", "Layers", "Results", "Export", "Run"):
        troubled.open(tab)
        check(troubled.form)
    check(troubled.report)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_no_violation_in_any_chart(theme, finished):
    finished.notebook.theme(theme)
    finished.open("Results")
    for picture in PICTURES:
        finished.choose("chart", picture)
        if picture in ("layers", "weights", "sensitivity", "confusion"):
            finished.choose({"weights": "after"}.get(picture, "version"), "@2")
        finished.press("Draw")
        expect(finished.status).to_have_text(re.compile(f"^{picture}: done"))
        check(finished.form.locator(".kdkit-results:visible"))
    finished.open("Run")


def test_the_wizard_works_after_a_reload_of_the_page(troubled):
    reopened = reopen(troubled)
    reopened.open("Build")
    reopened.press("Remove all steps")
    reopened.technique("tune finetune", epochs="3")
    reopened.press("Add step")
    expect(reopened.lines).to_have_text("%kd tune finetune --epochs 3 --on @base")


def reopen(wizard):
    """Save the wizard's notebook and open it again, with the focus in the wizard."""
    wizard.notebook.command("docmanager:save")
    wizard.notebook.open("digits.ipynb")
    again = Wizard(wizard.notebook.cell(1))
    again.form.wait_for()
    again.cell.select()
    again.enter()
    return again


@pytest.mark.parametrize("kernel", ["a new kernel", "no kernel"])
def test_the_report_remains_readable_with(kernel, finished):
    notebook = finished.notebook
    notebook.command("docmanager:save")
    notebook.page.goto("about:blank")
    notebook.lab.shut_down()
    if kernel == "a new kernel":
        notebook.open("digits.ipynb")
    else:
        notebook.page.goto(f"{notebook.lab.url}/lab?token={notebook.lab.token}&reset", wait_until="domcontentloaded")
        notebook.page.wait_for_function("() => window.jupyterapp?.commands.hasCommand('docmanager:open')")
        notebook.command("docmanager:open", path="digits.ipynb", kernelPreference={"shouldStart": False, "autoStartDefault": False})
    again = Wizard(notebook.cell(1))
    expect(again.report).to_contain_text("The forms of %kd wizard need a running kernel: run the cell again to restore them.")
    expect(again.report.get_by_role("heading").first).to_have_text("kdkit: @small")
    expect(again.report.get_by_role("row", name=re.compile("^@small . quantize static"))).to_be_visible()
    expect(again.report.get_by_role("listitem", name=re.compile("^@small: .*on the frontier"))).to_be_visible()
    expect(again.report.get_by_role("img", name=re.compile("Loss"))).to_be_visible()
    expect(again.form).to_have_count(0)
    # without a kernel, ipywidgets' own extension raises this in any notebook
    notebook.errors[:] = [error for error in notebook.errors if error != "Cannot read properties of null (reading 'kernel')"]
