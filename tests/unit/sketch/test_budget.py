import pytest

from pice.sketch.budget import Budget, budget_at_start, budget_inside, may_become_budget


@pytest.mark.parametrize(
    ("text", "words", "rest"),
    [
        ("(60) rent", 60, "rent"),
        ("[60] rent", 60, "rent"),
        ("（60）房租", 60, "房租"),
        ("(~50 words) rent", 50, "rent"),
        ("(50 words): rent", 50, "rent"),
        ("(50字)房租", 50, "房租"),
        ("(٥٠) إيجار", 50, "إيجار"),
        ("(five) rent", None, "(five) rent"),
        ("(40-60 words) rent", 60, "rent"),
        ("(1,200) rent", 1200, "rent"),
        ("(-3) rent", -3, "rent"),
        ("(words: 45) rent", 45, "rent"),
        ("`(60)` rent", 60, "rent"),
        ("50 words: rent", 50, "rent"),
        ("~50 Wörter – Miete", 50, "Miete"),
        ("50字：房租", 50, "房租"),
        ("1969: landing", None, "1969: landing"),
        ("300 words per minute", None, "300 words per minute"),
        ("(3 types) of rent", None, "(3 types) of rent"),
        ("(5 km) away", None, "(5 km) away"),
        ("(2.5) rent", None, "(2.5) rent"),
        ("rent (60)", None, "rent (60)"),
        ("", None, ""),
    ],
)
def test_budget_at_the_start_is_read_and_cut_off(text: str, words: int | None, rest: str) -> None:
    budget, left = budget_at_start(text)
    assert (budget.words if budget else None, left) == (words, rest)


@pytest.mark.parametrize(
    ("text", "words", "rest"),
    [
        ("rent (60 words)", 60, "rent"),
        ("Cost (60 words): rent", 60, "Cost: rent"),
        ("rent (60).", 60, "rent."),
        ("landing (1969)", None, "landing (1969)"),
        ("triplets (3)", None, "triplets (3)"),
        ("abstracts (250 words) are read", None, "abstracts (250 words) are read"),
    ],
)
def test_budget_behind_the_text_counts_where_it_ends_text_or_title(text: str, words: int | None, rest: str) -> None:
    budget, left = budget_inside(text)
    assert (budget.words if budget else None, left) == (words, rest)


def test_huge_numbers_are_read_without_error() -> None:
    budget, _ = budget_at_start(f"({'9' * 10_000}) x")
    assert budget == Budget(999_999, unit=False)


@pytest.mark.parametrize(
    "budget", ["(60) ", "[~75 words] ", "(about 30 words) ", "(60-80) ", "（50字） ", "50 words: "]
)
def test_every_beginning_of_a_budget_may_become_one(budget: str) -> None:
    for end in range(len(budget.rstrip(" )]）:"))):
        assert may_become_budget(budget[:end]), budget[:end]


@pytest.mark.parametrize("text", ["T", "the", "(a)", "1969 was", "50 apples", "(60) x", "(" + "1" * 40])
def test_text_that_cannot_become_a_budget_is_known_at_once(text: str) -> None:
    assert not may_become_budget(text)
