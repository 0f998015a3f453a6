"""Text out of a llama.cpp model."""

import codecs
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pice.engine.llama.text import Text
from pice.engine.llama.thinking import BLOCKS, answer_begun


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


def cut_up(data: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[begin:end] for begin, end in pairwise(places)]


CUTS = st.lists(st.integers(0, 1000), max_size=12)
STOPS = st.lists(st.text(alphabet="abé<", min_size=1, max_size=4), max_size=3).map(tuple)


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


@given(data=st.binary(max_size=40) | st.text(max_size=12).map(str.encode), cuts=CUTS)
@example(data=b"\xf0\x9f\xff\x98", cuts=[1, 2, 3])
@example(data=b"\xe2\x82", cuts=[1])
def test_bytes_however_cut_become_the_text_of_the_whole(data: bytes, cuts: list[int]) -> None:
    whole = codecs.getincrementaldecoder("utf-8")(errors="replace").decode(data)
    assert read(Text(()), cut_up(data, cuts)) == whole
    assert data.decode(errors="replace").startswith(whole)


def test_start_of_a_stop_string_is_held_back_until_it_is_refuted() -> None:
    text = Text(("###",))
    assert [text.feed(piece) for piece in (b"one #", b"#", b" two #")] == ["one ", "", "## two "]
    assert not text.stopped
    assert text.rest() == "#"


def test_incomplete_character_is_held_back_and_dropped_at_the_end() -> None:
    text = Text(())
    first, second = "é€".encode()[:2], "é€".encode()[2:4]
    assert [text.feed(first[:1]), text.feed(first[1:]), text.feed(second), text.rest()] == ["", "é", "", ""]


def test_bytes_that_are_no_text_become_one_replacement_character_each() -> None:
    text = Text(())
    assert [text.feed(piece) for piece in (b"a\xff", b"\xc3", b"b")] == ["a\ufffd", "", "\ufffdb"]


@given(
    before=st.sampled_from(["", "\n", "  "]),
    block=st.sampled_from(BLOCKS),
    thoughts=st.text(alphabet="ab <\n", max_size=8),
    after=st.sampled_from(["", "\n\n", " "]),
    answer=st.text(alphabet="ab<", max_size=6),
    stops=STOPS,
    cuts=CUTS,
)
def test_block_of_thinking_in_front_is_left_out_however_it_is_cut(
    before: str, block: tuple[str, str], thoughts: str, after: str, answer: str, stops: tuple[str, ...], cuts: list[int]
) -> None:
    whole = before + block[0] + thoughts + block[1] + after + answer
    assert read(Text(stops), cut_up(whole.encode(), cuts)) == cut_at_first_completed(answer, stops)


@given(text=st.text(alphabet="<think>/ [|a\n", max_size=12), stops=STOPS, cuts=CUTS)
def test_text_without_a_block_in_front_is_left_as_it_is(text: str, stops: tuple[str, ...], cuts: list[int]) -> None:
    if not text.lstrip().startswith(tuple(begin for begin, _ in BLOCKS)):
        assert read(Text(stops), cut_up(text.encode(), cuts)) == cut_at_first_completed(text, stops)


def test_text_is_held_back_only_while_it_may_be_a_tag() -> None:
    text = Text(())
    assert [text.feed(piece) for piece in (b"\n", b"<", b"th", b"e>", b" <think>x")] == [
        "",
        "",
        "",
        "\n<the>",
        " <think>x",
    ]


@pytest.mark.parametrize(
    ("whole", "answer"),
    [
        ("<think>never ends", ""),
        ("<think>", ""),
        ("<thin", "<thin"),
        ("  ", "  "),
        ("<think>a</think>  ", ""),
        ("<think>a</think>b<think>c</think>", "b<think>c</think>"),
        ("<|channel|>analysis<|message|>a<|end|>assistant<|channel|>final<|message|>b", "b"),
        ("<|channel|>final<|message|>b", "b"),
        ("[THINK]a[/THINK]b", "b"),
        ("</think>b", "</think>b"),
    ],
)
def test_answer_is_what_is_left_of_a_text(whole: str, answer: str) -> None:
    assert read(Text(()), [char.encode() for char in whole]) == answer
    assert read(Text((), thinking=False), [whole.encode()]) == whole


def test_stop_string_in_a_block_of_thinking_stops_nothing() -> None:
    text = Text(("stop",))
    assert text.feed(b"<think>stop</think>go on, stop") == "go on, "
    assert text.stopped


@pytest.mark.parametrize(
    ("prompt", "begun"),
    [
        ("user\nassistant\n", "user\nassistant\n"),
        ("assistant<think>\n", "assistant<think>\n\n</think>\n\n"),
        ("assistant[THINK]", "assistant[THINK]\n\n[/THINK]\n\n"),
        ("assistant<think>\n\n</think>\n\n", "assistant<think>\n\n</think>\n\n"),
        (
            "# Valid channels: final.<|start|>assistant",
            "# Valid channels: final.<|start|>assistant<|channel|>final<|message|>",
        ),
        ("<|start|>assistant", "<|start|>assistant"),
    ],
)
def test_thinking_that_a_prompt_opens_is_closed_at_once(prompt: str, begun: str) -> None:
    assert answer_begun(prompt) == begun
