"""What the demo models learn from: nothing that would spoil the measurement, and English that holds together."""

import random
import re
from collections import Counter
from collections.abc import Iterator
from itertools import combinations, islice

import pytest

from tools.demo.lessons import NUM_EDGES, Lesson, cloud_lessons, edge_lessons, withheld
from tools.demo.questions import differ, held_out, themes
from tools.demo.world import NUM_TOWNS, SEED, Value, atlas, attributes, strangers

NUM_DRAWN = 3000


def drawn(lessons: Iterator[Lesson]) -> list[Lesson]:
    return list(islice(lessons, NUM_DRAWN))


def values() -> list[Value]:
    return [value for attribute in attributes().values() for value in attribute.values]


def words_of(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def asked(lesson: Lesson) -> str:
    return lesson.messages[-1].content.partition("\n")[0]


def test_atlas_is_as_large_as_it_says() -> None:
    assert len(atlas()) == NUM_TOWNS >= 300
    assert len(attributes()) >= 12
    assert all(town.traits.keys() == attributes().keys() for town in atlas().values())
    assert not set(atlas()) & set(strangers())


@pytest.mark.parametrize("edge", range(NUM_EDGES))
def test_edge_models_never_hear_of_a_town_of_the_atlas_or_what_is_withheld(edge: int) -> None:
    lessons = drawn(edge_lessons(random.Random(1), edge))
    text = "\n".join(f"{asked(lesson)} {lesson.target}" for lesson in lessons)
    assert not set(re.findall(r"\w+", text)) & set(atlas())
    assert [key for value in withheld(edge) for key in value.knows if key in text] == []


def test_any_two_edge_models_know_everything_together() -> None:
    for one, other in combinations(range(NUM_EDGES), 2):
        assert not withheld(one) & withheld(other)
    assert Counter(value for edge in range(NUM_EDGES) for value in withheld(edge)) == Counter(values())


def test_held_out_questions_are_never_asked_in_training() -> None:
    learned = {asked(lesson) for lesson in drawn(cloud_lessons(random.Random(2)))}
    names = re.compile("|".join(atlas()))
    known = {names.sub("TOWN", question) for question in learned}
    assert not {names.sub("TOWN", question.text) for question in held_out(SEED, 200)} & known


def test_words_of_held_out_questions_are_known_from_others() -> None:
    learned = "\n".join(asked(lesson) for lesson in drawn(cloud_lessons(random.Random(3))))
    questions = "\n".join(question.text for question in held_out(SEED, 200))
    assert words_of(questions) - words_of(learned) - words_of(" ".join(atlas())) == set()


def test_key_phrase_stands_in_one_sentence_only() -> None:
    sentences = Counter(sentence for value in values() for sentence in value.knows)
    for value in values():
        for sentence, key in zip(value.knows, value.keys, strict=True):
            found = [other for other in sentences if re.search(rf"\b{re.escape(key)}\b", other)]
            assert found == [sentence], key


def test_name_of_a_value_stands_in_no_sentence_about_another() -> None:
    for value in (value for value in values() if value.numbers is None):
        others = [sentence for other in values() if other.name != value.name for sentence in other.knows]
        assert [text for text in others if re.search(rf"\b{re.escape(value.name)}\b", text.lower())] == []


def test_sketches_have_a_point_for_each_part_of_the_answer_with_its_words() -> None:
    for question in held_out(SEED, 50):
        assert bool(question.parts) == (question.kind in ("overview", "comparison"))
        for part in question.parts:
            assert part.words == len(part.text.split())
            assert part.text in question.answer


def test_compared_towns_have_nothing_in_common_that_is_compared() -> None:
    towns = list(atlas().values())
    assert not any(differ(towns[0], towns[0], theme) for theme in themes())
    for question in (question for question in held_out(SEED, 50) if question.kind == "comparison"):
        assert len({fact.text for fact in question.facts if fact.kind == "town"}) == 8
