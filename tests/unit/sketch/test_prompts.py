import re
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import pytest

from pice.core import Message, Point, Prompt, Sampling, Segment
from pice.errors import ConfigError
from pice.sketch.parser import SketchParser
from pice.sketch.prompts import PromptSet, load_prompts

QUESTION = "Why {walk} 100%?"
MESSAGES = (Message("user", QUESTION),)
CHAT = (
    Message("system", "Be kind."),
    Message("user", "Hello"),
    Message("assistant", "Hi"),
    Message("user", QUESTION),
)
SKETCH = (Point(0, "heart", 40), Point(1, "mood {x}", 50), Point(2, "sleep", 60))
BUILT_IN = files("pice.sketch").joinpath("prompts")


@pytest.fixture
def prompts() -> PromptSet:
    return load_prompts("default")


def segment(*points: Point, sketch: tuple[Point, ...] = SKETCH, messages: tuple[Message, ...] = CHAT) -> Segment:
    words = sum(point.words for point in points)
    return Segment("r", 0, 0, "expand", messages, sketch, points, words, Sampling(), 9.0)


def flat(prompt: Prompt) -> str:
    return "\n".join(f"<{message.role}>{message.content}" for message in prompt.messages)


def shared(one: str, other: str) -> str:
    """The longest beginning the two have in common."""
    return one[: next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(one))]


def copy_of_default(folder: Path, edit: Callable[[str], str]) -> str:
    for name in ("default.toml", "default.gbnf"):
        text = BUILT_IN.joinpath(name).read_text(encoding="utf-8")
        (folder / name).write_text(edit(text) if name.endswith(".toml") else text, encoding="utf-8")
    return str(folder / "default.toml")


def test_answer_is_the_conversation_as_it_is(prompts: PromptSet) -> None:
    assert prompts.answer(CHAT) == Prompt(CHAT)


def test_preamble_of_an_answer_is_merged_with_the_users_system_message(tmp_path: Path) -> None:
    path = copy_of_default(tmp_path, lambda text: text.replace('[answer]\nsystem = ""', '[answer]\nsystem = "Brief."'))
    assert load_prompts(path).answer(CHAT).messages == (Message("system", "Brief.\n\nBe kind."), *CHAT[1:])
    assert load_prompts(path).answer(MESSAGES).messages == (Message("system", "Brief."), *MESSAGES)


def test_gate_and_sketch_name_budget_and_points_only_after_the_question(prompts: PromptSet) -> None:
    for prompt in (
        prompts.gate(CHAT, sketch_words=81, max_points=7),
        prompts.sketch(CHAT, sketch_words=81, max_points=7, constrained=False),
    ):
        assert (prompt.kind, prompt.words, prompt.grammar) == ("sketch", 81, "")
        before, after = flat(prompt).split(QUESTION)
        assert "OUTLINE" in before
        assert "Be kind." in before
        assert re.findall(r"\d+", after) == ["7", "81"]
        assert [message.role for message in prompt.messages] == [message.role for message in CHAT]


def test_form_the_prompts_show_is_a_sketch_to_the_parser(prompts: PromptSet) -> None:
    for prompt in (
        prompts.gate(MESSAGES, sketch_words=80, max_points=7),
        prompts.sketch(MESSAGES, sketch_words=80, max_points=7),
    ):
        shown = re.search(r"^OUTLINE\n(?:- .*\n)+", prompt.messages[0].content, re.MULTILINE)
        assert shown is not None
        assert SketchParser().feed(shown[0]) == [Point(0, "first point", 70), Point(1, "second point", 40)]


def test_only_a_constrained_sketch_has_a_grammar(prompts: PromptSet) -> None:
    grammar = prompts.sketch(MESSAGES, sketch_words=80, max_points=7, constrained=True).grammar
    assert "point{2,7}" in grammar
    assert "MAX_POINTS" not in grammar


def test_expansion_has_question_and_outline_and_ends_with_its_task(prompts: PromptSet) -> None:
    prompt = prompts.expand(segment(SKETCH[1]))
    assert (prompt.kind, prompt.words) == ("expand", 50)
    assert prompt.messages[1:3] == CHAT[1:3]
    assert prompt.messages[0].content.endswith("\n\nBe kind.")
    last = prompt.messages[-1].content
    assert last.startswith(QUESTION)
    assert "1. heart\n2. mood {x}\n3. sleep\n" in last
    assert last.endswith("Write point 2 in about 50 words.")


def test_expansion_of_several_points_names_the_first_and_the_last(prompts: PromptSet) -> None:
    last = prompts.expand(segment(*SKETCH[:2])).messages[-1].content
    assert "points 1 to 2" in last
    assert "90 words" in last


def test_task_can_name_its_points_where_no_outline_is_shown() -> None:
    demo = load_prompts("demo")
    one, many = (demo.expand(segment(*points)).messages[-1].content for points in (SKETCH[1:2], SKETCH[:2]))
    assert one == f"{QUESTION}\n\nmood {{x}} (50 words)"
    assert many == f"{QUESTION}\n\nheart; mood {{x}} (90 words)"


def test_expansions_of_one_sketch_differ_only_in_their_last_words(prompts: PromptSet) -> None:
    one, other = flat(prompts.expand(segment(SKETCH[0]))), flat(prompts.expand(segment(SKETCH[2])))
    assert len(one.removeprefix(shared(one, other)).split()) <= 8


def test_expansion_released_earlier_shares_all_points_it_knew(prompts: PromptSet) -> None:
    early, late = flat(prompts.expand(segment(SKETCH[0], sketch=SKETCH[:1]))), flat(prompts.expand(segment(SKETCH[2])))
    assert shared(early, late).endswith("1. heart\n")


def test_segment_that_is_a_whole_request_is_the_conversation(prompts: PromptSet) -> None:
    whole = Segment("r", 0, 0, "answer", CHAT, (), (), 0, Sampling(), 9.0)
    assert prompts.expand(whole) == prompts.answer(CHAT)


def test_conversation_that_does_not_end_with_the_user_keeps_its_order(prompts: PromptSet) -> None:
    prompt = prompts.gate((*MESSAGES, Message("assistant", "Because")), sketch_words=80, max_points=7)
    assert [message.role for message in prompt.messages] == ["system", "user", "assistant"]
    alone = prompts.gate((Message("system", "Be kind."),), sketch_words=80, max_points=7)
    assert [message.role for message in alone.messages] == ["system", "user"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("version = 1", "version = 2", "version must be 1 and is 2"),
        ("version = 1", "", "version must be 1 and is missing"),
        ("version = 1", "version = true", "version must be 1 and is True"),
        ("version = 1", "version = 1\nflavour = 1", "flavour is no key of a prompt set"),
        ("[answer]", "[anwser]", "anwser is no key of a prompt set; did you mean answer?"),
        ('[answer]\nsystem = ""', "", r"\[answer\] must be a table with system, and is missing"),
        ("task_one =", "task_on =", r"expand.task_on is no key of a prompt set; did you mean expand.task_one?"),
        ('task_many = "', '#"', "expand.task_many must be a text, and is missing"),
        ('point = "{number}. {text}"', "point = 7", "expand.point must be a text, and is a int"),
        (
            "{number}. {text}",
            "{number}. {txt}",
            r"expand.point: unknown placeholder {txt}; those known here: {number}, {t",
        ),
        ("{number}. {text}", "{number.real}", r"expand.point: unknown placeholder {number.real}"),
        ("{number}. {text}", "{number:d}", r"expand.point: unknown placeholder {number}"),
        ("{number}. {text}", "{", "expand.point: .*written twice"),
        ("You see the question", "You see {question}", "expand.system: unknown placeholder {question}; .* none"),
        ("[gate]", "[gate", "is no TOML file in UTF-8"),
        ('"default.gbnf"', '"other.gbnf"', "sketch.grammar must name a .gbnf file beside it, and 'other.gbnf'"),
        ('"default.gbnf"', '"default.toml"', "sketch.grammar: default.toml must have MAX_POINTS"),
    ],
)
def test_faulty_prompt_set_is_refused_with_file_and_key(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = copy_of_default(tmp_path, lambda text: text.replace(old, new, 1))
    with pytest.raises(ConfigError, match=re.escape(path) + ": " + message.replace("{", r"\{")):
        load_prompts(path)


def test_prompt_set_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes(b'version = "\xff"')
    with pytest.raises(ConfigError, match=r"latin\.toml: is no TOML file"):
        load_prompts(str(tmp_path / "latin.toml"))


@pytest.mark.parametrize("name", ["nope", "../prompts/default", ""])
def test_unknown_name_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(ConfigError, match=r"built-in set \(default, demo\) or a path to a \.toml file, got"):
        load_prompts(name)


def test_missing_file_is_refused_with_its_path() -> None:
    with pytest.raises(ConfigError, match=r"no/such\.toml: cannot be read"):
        load_prompts("no/such.toml")


def test_copy_of_the_built_in_set_is_equal_to_it(tmp_path: Path, prompts: PromptSet) -> None:
    assert load_prompts(copy_of_default(tmp_path, lambda text: text)) == prompts
