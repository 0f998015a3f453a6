"""What the terminal shows of recorded events."""

import re
from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from pice.cli.show import Screen, figures, plan_line, printable
from pice.core import Answer, Event, Plan, Point, Span, Times, Usage

PLAN = Plan("progressive", "sketching is sooner", t_cloud_s=8.92, t_progressive_s=4.2)
EVENTS = [
    Event("r", "planned", 0.1, 1, plan=PLAN),
    Event("r", "sketch_text", 0.4, 1, text="1. Food (40 words)\n"),
    Event("r", "segment_released", 0.5, 1, 0, points=(Point(0, "Food", 40),)),
    Event("r", "sketch_text", 0.8, 1, text="2. Sleep (30 words)\n"),
    Event("r", "segment_released", 0.9, 1, 1, points=(Point(1, "Sleep", 30),), site="oslo"),
    Event("r", "segment_text", 1.2, 1, 0, text="Cats eat ", site="lyon", model="llama"),
    Event("r", "segment_text", 1.4, 1, 0, text="meat.", site="lyon", model="llama"),
    Event("r", "segment_chosen", 1.5, 1, 0, site="lyon", model="llama", confidence=0.734),
]


def drawn(*events: Event, width: int = 100, height: int = 40) -> str:
    screen = Screen()
    for event in events:
        screen.feed(event)
    console = Console(file=StringIO(), width=width, height=height, force_terminal=False, legacy_windows=False)
    with console.capture() as capture:
        console.print(screen)
    return capture.get()


def test_nothing_but_planning_is_shown_before_the_first_event() -> None:
    assert drawn().strip() == "planning"


def test_plan_sketch_and_segments_are_shown() -> None:
    shown = drawn(*EVENTS)
    assert "progressive: sketching is sooner (predicted: cloud 8.9 s, progressive 4.2 s)" in shown
    assert "2. Sleep (30 words)" in shown
    assert "1 · lyon · llama" in shown
    assert "Cats eat meat." in shown
    assert "confidence 0.73" in shown
    assert "2 · oslo" in shown
    assert "waiting" in shown


@pytest.mark.parametrize(("width", "beside"), [(100, True), (60, False)])
def test_segments_stand_side_by_side_where_there_is_room(width: int, beside: bool) -> None:
    lines = drawn(*EVENTS, width=width).splitlines()
    assert any("1 · lyon" in line and "2 · oslo" in line for line in lines) is beside
    assert max(map(len, lines)) <= width


def segments(num: int) -> list[Event]:
    """A sketch of so many points, and a segment of some lines for each."""
    events = [EVENTS[0]]
    for index in range(num):
        points = (Point(index, "Food", 40),)
        events += [
            Event("r", "sketch_text", 0.4, 1, text=f"{index + 1}. Food (40 words)\n"),
            Event("r", "segment_released", 0.5, 1, index, points=points),
            Event("r", "segment_text", 1.2, 1, index, text="word " * 60, site="lyon", model="llama"),
        ]
    return events


@pytest.mark.parametrize(
    ("width", "height", "num"),
    [(80, 24, 6), (80, 24, 24), (30, 12, 6), (30, 12, 24), (200, 50, 12), (80, 5, 6), (24, 80, 3)],
    ids=lambda value: str(value),
)
def test_every_segment_is_named_on_a_terminal_of_any_size(width: int, height: int, num: int) -> None:
    lines = drawn(*segments(num), width=width, height=height).splitlines()
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    named = {int(number) for line in lines for number in re.findall(r"(?:^| )(\d+) ·", line)}
    assert named >= set(range(1, num + 1))


def test_answer_and_sketch_keep_a_line_beside_segments_where_they_can() -> None:
    answer = Event("r", "answer_text", 2.0, 1, text="It is so. " * 40 + "Really.")
    lines = drawn(*segments(6), answer, width=80, height=16).splitlines()
    assert len(lines) <= 16
    assert "6. Food" in "".join(lines)
    assert lines[-1].rstrip().endswith("Really.")


def test_text_of_segments_is_shown_as_far_as_there_is_room() -> None:
    counts = [drawn(*segments(6), width=80, height=height).count("word word") for height in (12, 20, 24, 60)]
    assert counts[0] == 0
    assert counts == sorted(counts)
    assert counts[1] > 0


def test_later_attempt_voids_what_was_shown() -> None:
    shown = drawn(*EVENTS, Event("r", "sketch_text", 3.0, 2, text="another outline"))
    assert "another outline" in shown
    assert "Food" not in shown
    assert "lyon" not in shown


def test_event_of_an_earlier_attempt_is_passed_over() -> None:
    stale = replace(EVENTS[5], attempt=0, text="stale words")
    assert drawn(*EVENTS, stale) == drawn(*EVENTS)


def test_chosen_text_stays_when_a_loser_writes_on() -> None:
    late = Event("r", "segment_text", 2.0, 1, 0, text="late words", site="oslo", model="gemma")
    assert drawn(*EVENTS, late) == drawn(*EVENTS)


def test_chosen_candidate_replaces_the_one_that_was_writing() -> None:
    rival = [
        Event("r", "segment_text", 1.6, 1, 1, text="from lyon", site="lyon", model="llama"),
        Event("r", "segment_text", 1.7, 1, 1, text="from oslo", site="oslo", model="gemma"),
        Event("r", "segment_chosen", 1.8, 1, 1, site="lyon", model="llama", confidence=0.5),
    ]
    shown = drawn(*EVENTS, *rival)
    assert "from lyon" in shown
    assert "from oslo" not in shown


def test_long_segment_shows_its_last_words() -> None:
    long = Event("r", "segment_text", 2.0, 1, 1, text="first " + "middle " * 90 + "last", site="oslo", model="g")
    shown = drawn(*EVENTS, long)
    assert "last" in shown
    assert "first" not in shown


def test_answer_of_the_cloud_is_shown_as_it_comes() -> None:
    shown = drawn(replace(EVENTS[0], plan=Plan("cloud", "short")), Event("r", "answer_text", 0.5, 1, text="It is so."))
    assert shown.splitlines() == ["cloud: short", "It is so."]


def test_text_cannot_steer_the_terminal_nor_pass_as_markup() -> None:
    evil = "\x1b[2J\x9b2K\x07[bold]kept[/bold]\rover\ttab"
    assert printable(evil) == "[2J2K[bold]kept[/bold]over tab"
    shown = drawn(Event("r", "sketch_text", 0.1, 1, text=evil), replace(EVENTS[5], site="a\x1b[2J"))
    assert "\x1b" not in shown
    assert "[bold]kept[/bold]" in shown


def test_plan_without_predictions_is_its_reason() -> None:
    assert plan_line(Plan("edge", "asked for")) == "edge: asked for"


ANSWER = Answer(
    "r", "text", "cloud", "stop", 1, PLAN, usage=Usage(num_cloud_output_tokens=80), times=Times(0, 0, 0, 0.4, 2)
)


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (ANSWER, "cloud · first text 0.40 s · whole answer 2.00 s · cloud 80 tokens"),
        (
            replace(
                ANSWER,
                mode="progressive",
                finish_reason="length",
                sketch=(Point(0, "a", 9),),
                spans=(Span(0, "x", "oslo", "g", 0.5), Span(1, "y", "lyon", "l", 0.5), Span(2, "z", "", "", 0)),
                degraded=(2,),
                usage=Usage(num_cloud_output_tokens=20, num_edge_output_tokens=90, num_discarded_tokens=30),
                times=replace(ANSWER.times, sketch_s=0.7),
            ),
            (
                "progressive · first text 0.40 s · whole answer 2.00 s · sketch 0.70 s · cloud 20 tokens · "
                "edge 90 tokens (30 discarded) · lyon, oslo · degraded: segment 3 · stopped by its token limit"
            ),
        ),
    ],
    ids=["cloud", "progressive"],
)
def test_figures_say_when_how_much_and_where(answer: Answer, line: str) -> None:
    assert figures(answer) == line
