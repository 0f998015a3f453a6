"""Text of strangers on a terminal."""

import json

from hypothesis import given
from hypothesis import strategies as st

from pice.models.printable import MAX_SHOWN, json_text, shown


@given(st.text())
def test_shown_text_is_one_printable_line(text: str) -> None:
    assert shown(text).isprintable()


@given(st.text())
def test_json_is_printable_and_says_the_same(text: str) -> None:
    written = json_text({"text": text})
    assert written.replace("\n", "").isprintable()
    assert json.loads(written) == {"text": text}


def test_escapes_stand_for_what_would_steer_a_terminal() -> None:
    assert shown("a\x1b[31m\x9b2J\u202eb\n\u200bé") == r"a\x1b[31m\x9b2J\u202eb\n\u200bé"


def test_long_text_is_cut() -> None:
    assert shown("x" * (MAX_SHOWN + 1)) == "x" * MAX_SHOWN + "…"
    assert shown("x" * MAX_SHOWN) == "x" * MAX_SHOWN
