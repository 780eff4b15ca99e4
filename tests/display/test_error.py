"""Errors as HTML: the message and each hint, without relying on colour."""

from __future__ import annotations

from kdkit.display.error import problem
from kdkit.errors import KdError


def test_an_error_has_its_message_and_a_line_for_each_hint():
    html = problem(KdError("no data", "%kd set --train {x}", "%kd status"))
    assert html.split("<br>") == ['<p style="margin:2px 0"><b>✗ Not yet:</b> no data', "→ %kd set --train {x}", "→ %kd status</p>"]


def test_text_of_an_error_is_escaped():
    assert "<script>" not in problem(KdError("<script>", "<script>"))


def test_a_word_says_what_kind_of_problem_it_is():
    assert "<b>✗ Failed:</b>" in problem(KdError("no data"), "Failed")
