"""One JupyterLab, one Chromium and one page for the tests of a file.

Without Chromium or playwright the tests are skipped; if CI=true they fail instead.
"""

from __future__ import annotations

import os

import pytest

collect_ignore = ["axe.py", "walker.py"]
"""They contain no tests and can't be imported without playwright."""

CI = os.environ.get("CI") == "true"
try:
    from notebooks.lab import Notebook, chromium, executable, serve
except ImportError:
    if CI:
        raise


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A server."""
    with serve(tmp_path_factory.mktemp("lab")) as served:
        yield served


@pytest.fixture(scope="module")
def browser():
    """A browser; torn down with the file, since playwright leaves an event loop running, which breaks other tests."""
    if executable() is None:
        why = "Chromium is not installed (Debian: apt-get install chromium)"
        pytest.fail(why) if CI else pytest.skip(why)
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def notebook(browser, lab):
    """A page in which the test opens notebooks."""
    # as high as the longest output, so that everything is visible
    page = browser.new_page(viewport={"width": 1200, "height": 2600})
    yield Notebook(page, lab)
    page.close()


@pytest.fixture(autouse=True)
def clean(notebook):
    """No script of the page fails during a test, and no request leaves this machine."""
    notebook.errors.clear()
    notebook.outside.clear()
    yield
    assert not notebook.errors
    assert not notebook.outside
