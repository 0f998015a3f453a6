"""Where sampled time is booked."""

from collections import Counter

import pytest

from bench.costs import LOOP, Function, Sampler, Stack, by_module, own_shares, whole_shares
from pice.metrics import percentile

WRITE: Function = ("pice/node/edge.py", "EdgeNode._write")
EXPAND: Function = ("pice/node/edge.py", "EdgeNode._expand")
ENCODE: Function = ("pice/message/codec.py", "encode")

STACKS = Counter[Stack](
    {
        (WRITE, EXPAND): 4,
        (ENCODE, EXPAND): 3,
        (ENCODE, ENCODE, EXPAND): 1,
        (EXPAND,): 1,
        (): 1,
    }
)


def test_time_is_booked_to_the_module_of_the_innermost_function() -> None:
    assert by_module(STACKS) == pytest.approx({"pice.node.edge": 0.5, "pice.message.codec": 0.4, LOOP: 0.1})


def test_modules_share_all_of_the_time() -> None:
    assert sum(by_module(STACKS).values()) == pytest.approx(1.0)


def test_largest_shares_come_first() -> None:
    shares = list(by_module(STACKS).values())
    assert shares == sorted(shares, reverse=True)


def test_functions_own_time_is_without_what_they_called() -> None:
    shares = own_shares(STACKS)
    assert shares["pice/node/edge.py EdgeNode._expand"] == pytest.approx(0.1)
    assert shares["pice/message/codec.py encode"] == pytest.approx(0.4)


def test_functions_whole_time_counts_a_recursion_once() -> None:
    shares = whole_shares(STACKS)
    assert shares["pice/node/edge.py EdgeNode._expand"] == pytest.approx(0.9)
    assert shares["pice/message/codec.py encode"] == pytest.approx(0.4)


def test_no_samples_give_no_shares() -> None:
    assert by_module({}) == {}


def test_sampler_sees_functions_of_pice_and_no_others() -> None:
    with Sampler() as sampler:
        while not any(sampler.stacks) and sampler.stacks.total() < 2000:
            percentile(range(20_000), 50)
    assert whole_shares(sampler.stacks).keys() == {"pice/metrics.py percentile"}
