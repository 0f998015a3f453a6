"""Text into a llama.cpp model and out of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pice.core import Message, Prompt
from pice.engine.llama.text import CHATML, ChatTemplate, Text, grammar_problem
from pice.errors import InputError, ModelLoadError

ASKED = Prompt(messages=(Message("system", "Be brief."), Message("user", "Why {{ 1 + 1 }}?")))


def read(text: Text, data: list[bytes]) -> str:
    """What a reader of the pieces sees."""
    seen = ""
    for piece in data:
        seen += text.feed(piece)
        if text.stopped:
            return seen
    return seen + text.rest()


def cut_at_first_completed(text: str, stops: tuple[str, ...]) -> str:
    for end in range(len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)]
    return text


@given(
    pieces=st.lists(st.text(alphabet="abé", max_size=4), max_size=12),
    stops=st.lists(st.text(alphabet="abé", min_size=1, max_size=4), max_size=3).map(tuple),
)
def test_text_ends_before_the_stop_string_completed_first_however_it_is_cut(
    pieces: list[str], stops: tuple[str, ...]
) -> None:
    whole = "".join(pieces)
    assert read(Text(stops), [piece.encode() for piece in pieces]) == cut_at_first_completed(whole, stops)
    assert read(Text(stops), [bytes([byte]) for byte in whole.encode()]) == cut_at_first_completed(whole, stops)


def test_start_of_a_stop_string_is_held_back_until_it_is_refuted() -> None:
    text = Text(("###",))
    assert [text.feed(piece) for piece in (b"one #", b"#", b" two #")] == ["one ", "", "## two "]
    assert not text.stopped
    assert text.rest() == "#"


def test_incomplete_character_is_held_back_and_dropped_at_the_end() -> None:
    text = Text(())
    first, second = "é€".encode()[:2], "é€".encode()[2:4]
    assert [text.feed(first[:1]), text.feed(first[1:]), text.feed(second), text.rest()] == ["", "é", "", ""]


def test_bytes_that_are_no_text_become_replacement_characters() -> None:
    assert Text(()).feed(b"a\xffb") == "a\ufffdb"


def test_chatml_renders_every_message_as_it_is_and_opens_the_answer() -> None:
    assert ChatTemplate(CHATML, bos="", eos="").render(ASKED) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhy {{ 1 + 1 }}?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_template_is_given_the_special_tokens_and_told_not_to_think() -> None:
    source = (
        "{{ bos_token }}{{ messages[0].content | tojson }}{{ enable_thinking }}{{ tools is defined }}{{ eos_token }}"
    )
    assert ChatTemplate(source, bos="<s>", eos="</s>").render(ASKED) == '<s>"Be brief."FalseFalse</s>'


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[0].content + 1 }}", "must be str|can only concatenate"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe|not safely callable"),
    ],
    ids=["refused by the template", "wrong types", "out of the sandbox", "changes its input"],
)
def test_messages_that_a_template_refuses_are_the_callers_error(source: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        ChatTemplate(source, bos="", eos="").render(ASKED)


def test_prompt_without_messages_is_refused() -> None:
    with pytest.raises(InputError, match="at least one message"):
        ChatTemplate(CHATML, bos="", eos="").render(Prompt(messages=()))


def test_template_that_cannot_be_read_makes_the_model_unusable() -> None:
    with pytest.raises(ModelLoadError, match="chatml"):
        ChatTemplate("{% for %}", bos="", eos="")


@pytest.mark.parametrize(
    ("grammar", "problem"),
    [
        ('root ::= "a"', ""),
        ('root ::= ("a" | [(({9,1}])* # ((( {9,1}', ""),
        ('root ::= "{9,1}" "\\"{9,1}"', ""),
        ('root ::= "a"{2} "b"{2,} "c"{2,3}', ""),
        ('root ::= "a"{5,2}', "least <= most"),
        ('root ::= "a"{ 5 , 2 }', "least <= most"),
        ('root ::= "a"{99999}', "at most 10000"),
        ("root ::= " + '("a"){2000} ' * 6, "at most 10000"),
        ("root ::= " + "(" * 300 + '"a"' + ")" * 300, "groups"),
        ('root ::= "\0"', "NUL"),
        ("root ::= " + '"a" ' * 20000, "bytes"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "",
)
def test_grammar_that_would_bring_llama_cpp_down_is_told(grammar: str, problem: str) -> None:
    found = grammar_problem(grammar.encode())
    assert problem in found
    assert bool(found) == bool(problem)
