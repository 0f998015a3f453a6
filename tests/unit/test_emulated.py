"""The emulated engine: its timing against figures worked out by hand, and its text."""

import asyncio
import math
import re
from dataclasses import replace
from statistics import fmean
from typing import Any

import pytest

from pice.core import Curve, Message, Point, Prompt, PromptKind, Sampling, Segment
from pice.engine.base import Piece
from pice.engine.emulated import EmulatedEngine, TextStyle
from pice.errors import ConfigError, EngineError, EngineUnavailable, UnsupportedParameter
from pice.simulation.clock import VirtualClockLoop, run_virtual
from pice.sketch.prompts import load_prompts

SHARED = Curve(batch=(1, 2, 4), step_s=(0.1, 0.2, 0.3))
INSTANT = Curve(batch=(1,), step_s=(0.0,))
PROMPT = Prompt(messages=(Message("user", "Describe harbour pilots guiding container vessels safely"),))
FIVE = Sampling(max_tokens=5)
LONG = TextStyle(answer_words=(100, 100))


async def engine(curve: Curve = SHARED, **settings: Any) -> EmulatedEngine:
    made = EmulatedEngine(**{"model": "m", "curve": curve, "seed": 1, "style": LONG, **settings})
    await made.start()
    return made


async def stamps(made: EmulatedEngine, sampling: Sampling = FIVE, after_s: float = 0.0) -> list[float]:
    """When each piece came, on a clock that starts at 0."""
    await asyncio.sleep(after_s)
    loop = asyncio.get_running_loop()
    return [loop.time() async for _ in made.generate(PROMPT, sampling)]


async def pieces(made: EmulatedEngine, prompt: Prompt = PROMPT, sampling: Sampling | None = None) -> list[Piece]:
    return [piece async for piece in made.generate(prompt, sampling or Sampling())]


async def text(made: EmulatedEngine, prompt: Prompt = PROMPT, sampling: Sampling | None = None) -> str:
    return "".join(piece.text for piece in await pieces(made, prompt, sampling))


def asking(kind: PromptKind, words: int = 0, number: int = 0) -> Prompt:
    content = f"{PROMPT.messages[0].content} {number}"
    return Prompt(messages=(Message("user", content),), kind=kind, words=words)


def texts(kind: PromptKind, num: int, **style: Any) -> list[str]:
    async def main() -> list[str]:
        made = await engine(INSTANT, style=TextStyle(**style))
        return [await text(made, asking(kind, number=number)) for number in range(num)]

    return run_virtual(main())


def test_lone_generation_takes_base_prefill_and_one_step_per_further_token() -> None:
    async def main() -> list[float]:
        return await stamps(await engine(replace(SHARED, base_s=0.5, prefill_s_per_token=0.01)))

    assert run_virtual(main()) == pytest.approx([0.57, 0.67, 0.77, 0.87, 0.97])


@pytest.mark.parametrize(
    ("num", "step_s"),
    [(1, 0.1), (2, 0.2), (3, 0.25), (4, 0.3), (6, 0.4)],
    ids=["first", "given", "between", "last", "beyond"],
)
def test_generations_decoding_together_all_take_the_step_of_their_number(num: int, step_s: float) -> None:
    async def main() -> list[list[float]]:
        made = await engine()
        return await asyncio.gather(*(stamps(made) for _ in range(num)))

    assert run_virtual(main()) == [pytest.approx([step_s * step for step in range(5)])] * num


def test_batch_below_the_first_given_size_takes_its_step() -> None:
    async def main() -> list[float]:
        return await stamps(await engine(Curve(batch=(4, 8), step_s=(0.3, 0.5))))

    assert run_virtual(main())[-1] == pytest.approx(1.2)


def test_step_of_a_falling_curve_takes_at_least_no_time() -> None:
    async def main() -> list[list[float]]:
        made = await engine(Curve(batch=(1, 2), step_s=(0.2, 0.1), base_s=0.5), max_inflight=4)
        return await asyncio.gather(*(stamps(made) for _ in range(5)))

    assert run_virtual(main()) == [[0.5] * 5] * 4 + [pytest.approx([1.0, 1.2, 1.4, 1.6, 1.8])]


def test_generation_joining_midway_slows_the_step_in_progress() -> None:
    async def main() -> tuple[list[float], list[float]]:
        made = await engine()
        return await asyncio.gather(stamps(made), stamps(made, after_s=0.25))

    first, second = run_virtual(main())
    # Half of the step begun at 0.2 is left at 0.25 and takes 0.1. The first ends at 0.55, when the second has made
    # 1.5 steps; the half step left and the last two go at the pace of one.
    assert first == pytest.approx([0.0, 0.1, 0.2, 0.35, 0.55])
    assert second == pytest.approx([0.25, 0.45, 0.6, 0.7, 0.8])


def test_generation_closed_midway_speeds_up_the_others_at_once() -> None:
    async def main() -> list[float]:
        made = await engine()
        leaving = asyncio.create_task(stamps(made))
        staying = asyncio.create_task(stamps(made))
        await asyncio.sleep(0.3)
        leaving.cancel()
        return await staying

    assert run_virtual(main()) == pytest.approx([0.0, 0.2, 0.35, 0.45, 0.55])


def test_prefill_holds_up_nobody() -> None:
    async def main() -> tuple[list[float], list[float]]:
        made = await engine(replace(SHARED, prefill_s_per_token=0.1))
        return await asyncio.gather(stamps(made), stamps(made, after_s=0.5))

    first, second = run_virtual(main())
    assert first == pytest.approx([0.7, 0.8, 0.9, 1.0, 1.1])
    assert second == pytest.approx([1.2, 1.3, 1.4, 1.5, 1.6])


def test_generations_beyond_max_inflight_wait_in_order_of_arrival() -> None:
    async def main() -> list[list[float]]:
        made = await engine(max_inflight=1)
        return await asyncio.gather(*(stamps(made, after_s=0.01 * number) for number in (0, 2, 1)))

    first, last, second = run_virtual(main())
    assert (first[0], second[0], last[0]) == pytest.approx((0.0, 0.4, 0.8))


def test_waiting_generation_with_the_earliest_deadline_begins_first() -> None:
    async def main() -> list[str]:
        made = await engine(max_inflight=1)
        ended = list[str]()

        async def ask(name: str, deadline_s: float) -> None:
            async for _ in made.generate(PROMPT, FIVE, deadline_s=deadline_s):
                pass
            ended.append(name)

        await asyncio.gather(ask("runs", 9.0), ask("no hurry", 8.0), ask("none", math.inf), ask("soon", 5.0))
        return ended

    assert run_virtual(main()) == ["runs", "soon", "no hurry", "none"]


def test_waiting_generation_given_up_lets_the_next_one_in() -> None:
    async def main() -> float:
        made = await engine(max_inflight=1)
        running, waiting, next_one = (asyncio.create_task(stamps(made)) for _ in range(3))
        await asyncio.sleep(0.1)
        waiting.cancel()
        await running
        return (await next_one)[0]

    assert run_virtual(main()) == pytest.approx(0.4)


def test_slow_reader_holds_its_place_only_as_long_as_it_decodes() -> None:
    async def main() -> list[float]:
        made = await engine(max_inflight=1)
        slow = made.generate(PROMPT, FIVE)
        await anext(slow)
        waiting = await stamps(made)
        await slow.aclose()
        return waiting

    assert run_virtual(main())[0] == pytest.approx(0.4)


def test_pieces_of_several_tokens_come_when_their_last_token_is_drawn() -> None:
    async def main() -> list[float]:
        return await stamps(await engine(piece_tokens=2))

    assert run_virtual(main()) == pytest.approx([0.1, 0.3, 0.4])


def test_prefill_is_timed_also_where_steps_take_no_time() -> None:
    async def main() -> list[float]:
        return await stamps(await engine(replace(INSTANT, base_s=0.5)))

    assert run_virtual(main()) == [0.5] * 5


def timers_of(curve: Curve, num: int, monkeypatch: pytest.MonkeyPatch) -> int:
    timers: list[object] = []
    set_timer = VirtualClockLoop.call_at

    def counted(*args: Any, **kwargs: Any) -> asyncio.TimerHandle:
        timers.append(args)
        return set_timer(*args, **kwargs)

    async def main() -> None:
        made = await engine(curve)
        await asyncio.gather(*(pieces(made, sampling=Sampling(max_tokens=50)) for _ in range(num)))

    monkeypatch.setattr(VirtualClockLoop, "call_at", counted)
    run_virtual(main())
    return len(timers)


def test_pieces_due_at_once_share_one_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    assert timers_of(SHARED, 16, monkeypatch) <= 50 + 16


def test_curve_of_zeros_sets_no_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    assert timers_of(INSTANT, 16, monkeypatch) == 0


def test_pause_freezes_prefill_and_decoding_until_resume() -> None:
    async def main() -> list[list[float]]:
        made = await engine(replace(SHARED, base_s=0.3))
        waiting = [asyncio.create_task(stamps(made, after_s=after_s)) for after_s in (0.0, 0.4, 0.5)]
        await asyncio.sleep(0.45)
        made.pause()
        made.pause()
        await asyncio.sleep(10.0)
        assert not any(task.done() for task in waiting)
        made.resume()
        return [await task for task in waiting]

    decoding, prefilling, entering = run_virtual(main())
    assert decoding[:3] == pytest.approx([0.3, 0.4, 10.5])
    assert prefilling[0] == pytest.approx(10.7)
    assert entering[0] == pytest.approx(10.75)


def test_paused_engine_without_a_pace_gives_nothing_until_resume() -> None:
    async def main() -> list[float]:
        made = await engine(INSTANT)
        made.pause()
        waiting = asyncio.create_task(stamps(made))
        await asyncio.sleep(1.0)
        made.resume()
        return await waiting

    assert run_virtual(main()) == [1.0] * 5


def test_failure_ends_running_waiting_and_later_generations_until_resume() -> None:
    async def main() -> list[object]:
        made = await engine(max_inflight=1)
        tasks = [asyncio.create_task(stamps(made)) for _ in range(2)]
        await asyncio.sleep(0.1)
        made.fail_with(EngineError("the board lost power"))
        ended = await asyncio.gather(*tasks, stamps(made), return_exceptions=True)
        made.resume()
        return [*map(repr, ended), len(await stamps(made))]

    assert run_virtual(main()) == [repr(EngineError("the board lost power"))] * 3 + [5]


def test_reader_that_is_behind_sees_the_failure_next() -> None:
    async def main() -> None:
        made = await engine()
        slow = made.generate(PROMPT, FIVE)
        await anext(slow)
        await asyncio.sleep(0.25)
        made.fail_with(EngineError("the board lost power"))
        await anext(slow)

    with pytest.raises(EngineError, match="lost power"):
        run_virtual(main())


def test_close_while_paused_ends_generations_and_start_does_not_revive_it() -> None:
    async def main() -> tuple[object, object]:
        made = await engine()
        task = asyncio.create_task(stamps(made))
        await asyncio.sleep(0.1)
        made.pause()
        await made.close()
        await made.start()
        return await asyncio.gather(task, stamps(made), return_exceptions=True)

    assert [type(ended) for ended in run_virtual(main())] == [EngineUnavailable] * 2


def test_engine_not_started_is_unavailable() -> None:
    made = EmulatedEngine(model="m", curve=SHARED, seed=1)
    with pytest.raises(EngineUnavailable, match="start"):
        run_virtual(stamps(made))


@pytest.mark.parametrize(
    "setting",
    [
        {"max_inflight": 0},
        {"piece_tokens": 0},
        {"curve": Curve(batch=(), step_s=())},
        {"curve": Curve(batch=(1, 2), step_s=(0.1,))},
    ],
    ids=["no slots", "empty pieces", "empty curve", "curve of two lengths"],
)
def test_setting_out_of_range_is_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        EmulatedEngine(**{"model": "m", "curve": SHARED, "seed": 1, **setting})


def test_text_is_the_same_in_every_process() -> None:
    async def main() -> str:
        return await text(await engine(INSTANT), asking("expand", words=6))

    assert run_virtual(main()) == "Vessels safely within container safely container harbour."


@pytest.mark.parametrize(
    ("settings", "prompt", "sampling"),
    [
        ({"seed": 2}, PROMPT, Sampling()),
        ({"model": "other"}, PROMPT, Sampling()),
        ({}, replace(PROMPT, messages=(Message("user", "Describe something else"),)), Sampling()),
        ({}, PROMPT, Sampling(seed=3)),
    ],
    ids=["engine seed", "model", "messages", "sampling seed"],
)
def test_text_changes_with_each_of_its_seeds(settings: dict[str, Any], prompt: Prompt, sampling: Sampling) -> None:
    async def main() -> tuple[str, str]:
        return await text(await engine(INSTANT)), await text(await engine(INSTANT, **settings), prompt, sampling)

    usual, other = run_virtual(main())
    assert usual != other


def test_sketch_is_an_outline_with_words_for_each_point_and_a_piece_ends_at_each_line() -> None:
    async def main() -> list[Piece]:
        style = TextStyle(points=(3, 3), words_per_point=(20, 50))
        return await pieces(await engine(INSTANT, style=style, piece_tokens=4), asking("sketch", words=18))

    found = run_virtual(main())
    header, *lines = "".join(piece.text for piece in found).splitlines()
    points = [re.fullmatch(r"- \((\d+)\)(( \w+){6})", line) for line in lines]
    assert header == "OUTLINE"
    assert [20 <= int(point[1]) <= 50 for point in points if point] == [True] * 3
    assert all("\n" not in piece.text[:-1] for piece in found)
    assert [piece.num_tokens for piece in found] == [1] + [4, 4] * 3


def test_sketch_prompts_are_answered_directly_at_the_given_rate() -> None:
    direct = [not sketch.startswith("OUTLINE\n") for sketch in texts("sketch", 200, direct_rate=0.25)]
    assert 0.15 < fmean(direct) < 0.35


def test_malformed_sketches_miss_the_format() -> None:
    well_formed = re.compile(r"OUTLINE\n(- \(\d+\)( \w+)+\n)+")
    assert not any(map(well_formed.fullmatch, texts("sketch", 20, malformed_rate=1.0)))
    assert all(map(well_formed.fullmatch, texts("sketch", 20)))


@pytest.mark.parametrize(("kind", "usual"), [("answer", (40, 60)), ("expand", (10, 15))])
def test_text_has_the_words_asked_for_or_as_many_as_usual(kind: PromptKind, usual: tuple[int, int]) -> None:
    async def main() -> list[int]:
        style = TextStyle(answer_words=(40, 60), words_per_point=(10, 15))
        made = await engine(INSTANT, style=style)
        return [len((await text(made, asking(kind, words))).split()) for words in (0, 200)]

    unasked, asked = run_virtual(main())
    assert usual[0] <= unasked <= usual[1]
    assert 170 <= asked <= 230


def test_fidelity_raises_the_share_of_the_prompts_words_and_their_probability() -> None:
    async def main(fidelity: float) -> tuple[float, float]:
        made = await engine(INSTANT, style=TextStyle(fidelity=fidelity))
        found = await pieces(made, asking("expand", words=200))
        own = set(PROMPT.messages[0].content.lower().split())
        share = fmean(piece.text.lower().strip(" .") in own for piece in found)
        return share, fmean(logprob for piece in found for logprob in piece.logprobs)

    (low_share, low_logprob), (high_share, high_logprob) = run_virtual(main(0.2)), run_virtual(main(0.8))
    assert (low_share, high_share) == pytest.approx((0.2, 0.8), abs=0.1)
    assert low_logprob < high_logprob - 0.3


OUTLINE = ("Ferry timetables", "Lighthouse keepers counting vessels", "Dredging budgets 1914: engineers", "Tariffs")


def expanding(first: int, last: int, *, question: str = "Why do harbours need pilots?", words: int = 60) -> Prompt:
    """What an edge is given for the points `first` to `last` of `OUTLINE`, in the words of the built-in prompts."""
    sketch = tuple(Point(index, text, words) for index, text in enumerate(OUTLINE))
    asked = (Message("user", question), Message("assistant", "Gladly:"))
    own = sketch[first - 1 : last]
    return load_prompts("default").expand(Segment("r", 1, 0, "expand", asked, sketch, own, words, Sampling(), 9.0))


@pytest.mark.parametrize(
    ("prompt", "own"),
    [
        (expanding(2, 2), "lighthouse keepers counting vessels"),
        (expanding(2, 3), "lighthouse keepers counting vessels dredging budgets engineers"),
        (expanding(3, 3, words=3), "dredging budgets engineers"),
        (expanding(4, 4, question="Compare 2 kinds:\n1. trains\n4. canals\n9. aircraft"), "tariffs"),
    ],
    ids=["one point", "two points", "as many words as its number", "question with numbered lines"],
)
def test_expansion_takes_its_own_words_from_its_own_points(prompt: Prompt, own: str) -> None:
    async def main() -> str:
        made = await engine(INSTANT, style=TextStyle(fidelity=1.0))
        return "".join([await text(made, prompt, Sampling(seed=seed)) for seed in range(20)])

    assert set(run_virtual(main()).lower().replace(".", " ").split()) == set(own.split())


def test_expansion_that_names_no_point_takes_its_words_from_the_users_last_message() -> None:
    async def main() -> str:
        messages = (*PROMPT.messages, Message("assistant", "Certainly, here goes"))
        made = await engine(INSTANT, style=TextStyle(fidelity=1.0))
        return await text(made, Prompt(messages, kind="expand", words=200))

    own = set(PROMPT.messages[0].content.lower().split())
    assert set(run_virtual(main()).lower().replace(".", " ").split()) == own


def test_error_comes_midway_after_text_without_an_end() -> None:
    async def main() -> tuple[list[str | None], float]:
        made = await engine(style=replace(LONG, error_rate=1.0))
        seen: list[Piece] = []
        try:
            async for piece in made.generate(PROMPT, Sampling(max_tokens=10)):
                seen.append(piece)
        except EngineError:
            return [piece.finish_reason for piece in seen], asyncio.get_running_loop().time()
        pytest.fail("it ended without an error")

    finish_reasons, ended_s = run_virtual(main())
    assert finish_reasons == [None] * 5
    assert ended_s == pytest.approx(0.4)


def test_empty_text_is_one_piece_that_ends_at_once() -> None:
    async def main() -> list[Piece]:
        return await pieces(await engine(style=TextStyle(empty_rate=1.0)))

    assert run_virtual(main()) == [Piece("", finish_reason="stop", num_prompt_tokens=7)]


def test_loop_repeats_one_phrase_up_to_the_token_limit() -> None:
    async def main() -> list[Piece]:
        return await pieces(await engine(INSTANT, style=TextStyle(loop_rate=1.0)), sampling=Sampling(max_tokens=50))

    found = run_virtual(main())
    words = "".join(piece.text for piece in found).split()
    assert words == words[:5] * 10
    assert found[-1].finish_reason == "length"


def test_text_ends_before_the_earliest_stop_string_and_its_token_counts() -> None:
    async def main() -> tuple[str, list[Piece]]:
        made = await engine(INSTANT)
        whole = await text(made)
        second, third = whole.split()[1:3]
        return whole, await pieces(made, sampling=Sampling(stop=(third, second[1:], "absent")))

    whole, found = run_virtual(main())
    first, second = whole.split()[:2]
    assert "".join(piece.text for piece in found) == f"{first} {second[0]}"
    assert (len(found), found[-1].finish_reason) == (2, "stop")


async def constrained(kind: PromptKind) -> str:
    made = await engine(INSTANT, style=TextStyle(direct_rate=0.5, malformed_rate=1.0))
    return "".join([await text(made, replace(asking(kind, 0, number), grammar="root ::= .*")) for number in range(5)])


def test_grammar_keeps_a_sketch_in_its_format() -> None:
    assert re.fullmatch(r"(OUTLINE\n(- \(\d+\)( \w+)+\n)+){5}", run_virtual(constrained("sketch")))


@pytest.mark.parametrize("kind", ["answer", "expand"])
def test_grammar_of_anything_but_a_sketch_is_refused(kind: PromptKind) -> None:
    with pytest.raises(UnsupportedParameter, match="grammar"):
        run_virtual(constrained(kind))
