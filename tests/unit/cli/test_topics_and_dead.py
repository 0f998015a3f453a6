"""`pice topics` and `pice dead`, over an operator's calls that play a part."""

from collections.abc import Awaitable, Callable
from typing import Any

import orjson
import pytest
from typer.testing import CliRunner, Result

from pice.cli import dead, topics
from pice.core import Candidate
from pice.errors import ConfigError, InputError
from pice.message.codec import encode
from pice.settings import Settings

pytest.importorskip("aiokafka", reason="aiokafka is not installed: pip install 'pice[cluster]'")

from pice.transport.kafka_dead import DeadMessage
from pice.transport.kafka_topics import TopicChange, TopicState

ENGINE = 'engines.big={kind="emulated",curve={batch=[1],step_s=[0.0]}}'
SET = ["--set", ENGINE, "--set", "cloud.engine=big"]
Calls = list[tuple[Any, ...]]


def run(commands: Any, *args: str) -> Result:
    return CliRunner().invoke(commands, [*args, *SET])


def playing(monkeypatch: pytest.MonkeyPatch, where: str, answer: Any) -> Calls:
    calls: Calls = []

    async def call(settings: Settings, *args: Any) -> Any:
        calls.append(args)
        return answer

    monkeypatch.setattr(where, call)
    return calls


def message(**others: Any) -> DeadMessage:
    facts: dict[str, Any] = {
        "dead_id": "0:17",
        "reason": "no message of ours",
        "topic": "pice.requests",
        "partition": 3,
        "position": 42,
        "key": "r1",
        "headers": {"request_id": b"r1"},
        "payload": b"\xff\x00",
        "num_bytes": 2,
        "stored_s": 1_700_000_000.5,
    }
    return DeadMessage(**(facts | others))


def test_making_topics_says_what_was_done(monkeypatch: pytest.MonkeyPatch) -> None:
    changes = [TopicChange("a", 0, 8), TopicChange("b", 1, 3), TopicChange("c", 1, 1)]
    playing(monkeypatch, "pice.cli.topics.create_topics", changes)
    ran = run(topics.commands, "create")
    assert ran.stdout.splitlines() == [
        "a: made with 8 partitions",
        "b: grown from 1 to 3 partitions",
        "c: is there with 1 partitions",
    ]


def test_topics_are_described_and_a_fault_is_an_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    good = TopicState("a", 8, 3, 7200.0, 1000, lag={"a.cloud": 5})
    bad = TopicState("b", faults=("is missing",))
    playing(monkeypatch, "pice.cli.topics.describe_topics", [good])
    ran = run(topics.commands, "describe")
    assert (ran.exit_code, ran.stdout.splitlines()) == (
        0,
        ["a: 8 partitions, 3 copies; kept for 2 h; messages of up to 1000 bytes", "  a.cloud: 5 to do"],
    )
    playing(monkeypatch, "pice.cli.topics.describe_topics", [good, bad])
    ran = run(topics.commands, "describe")
    assert (ran.exit_code, ran.stdout.splitlines()[-2:]) == (1, ["b: none", "  FAULT: is missing"])
    shown = orjson.loads(run(topics.commands, "describe", "--json").stdout)
    assert [(it["name"], it["faults"], it["lag"]) for it in shown] == [
        ("a", [], {"a.cloud": 5}),
        ("b", ["is missing"], {}),
    ]


def test_dead_messages_are_listed_with_what_an_operator_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = playing(monkeypatch, "pice.cli.dead.list_dead", [message(), message(dead_id="0:18", replayed=True)])
    ran = run(dead.commands, "list", "--topic", "pice.requests", "--limit", "7")
    assert calls == [(7, "pice.requests")]
    first, second = ran.stdout.splitlines()
    assert first == "0:17  2023-11-14T22:13:20.500+00:00  pice.requests 3/42  2 bytes  no message of ours"
    assert second.endswith("no message of ours (replayed)")
    (shown, _) = orjson.loads(run(dead.commands, "list", "--json").stdout)
    assert (shown["id"], shown["num_bytes"], shown["headers"], shown["replayed"]) == (
        "0:17",
        2,
        {"request_id": "r1"},
        False,
    )


def test_message_is_shown_with_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    payload = encode(Candidate("r1", 1, 0, "paris", "small", "Hello"))
    playing(monkeypatch, "pice.cli.dead.read_dead", message(payload=payload))
    shown = run(dead.commands, "show", "0:17").stdout
    assert "reason: no message of ours\n" in shown
    assert "header request_id: r1\n" in shown
    assert orjson.loads(shown.split("payload:\n")[1])["text"] == "Hello"


def test_of_a_message_that_says_nothing_the_first_bytes_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    playing(monkeypatch, "pice.cli.dead.read_dead", message(payload=b"\xc1" * 300))
    shown = run(dead.commands, "show", "0:17").stdout.splitlines()
    assert shown[-1] == " ".join(["c1"] * 256) + " ..."


def test_nothing_of_a_message_reaches_the_terminal_as_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    evil = "\x1b[2J\x9b2J\r\n"
    payload = encode(Candidate("r1", 1, 0, "paris", "small", evil))
    bad = message(reason=evil, topic=evil, key=evil, headers={evil: evil.encode()}, payload=payload)
    playing(monkeypatch, "pice.cli.dead.read_dead", bad)
    playing(monkeypatch, "pice.cli.dead.list_dead", [bad])
    for args in (["show", "0:17"], ["list"], ["list", "--json"]):
        shown = run(dead.commands, *args).stdout
        assert "\x1b" not in shown
        assert "\x9b" not in shown
        assert "\r" not in shown


def test_replay_says_where_to(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = playing(monkeypatch, "pice.cli.dead.replay_dead", message())
    ran = run(dead.commands, "replay", "0:17")
    assert (calls, ran.stdout) == ([("0:17",)], "0:17: published again to pice.requests, partition 3\n")


def test_what_cannot_be_done_is_raised_for_the_command_line_to_say(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(settings: Settings, *args: Any) -> Awaitable[None]:
        raise InputError("was replayed already")

    monkeypatch.setattr("pice.cli.dead.replay_dead", refuse)
    assert isinstance(run(dead.commands, "replay", "0:17").exception, InputError)


@pytest.mark.parametrize(
    ("commands", "args"),
    [
        (topics.commands, ["create"]),
        (topics.commands, ["describe"]),
        (dead.commands, ["list"]),
        (dead.commands, ["show", "0:1"]),
        (dead.commands, ["replay", "0:1"]),
    ],
    ids=lambda it: it[0] if isinstance(it, list) else "",
)
def test_without_brokers_in_the_settings_they_say_so(commands: Callable[..., Any], args: list[str]) -> None:
    error = run(commands, *args).exception
    assert isinstance(error, ConfigError)
    assert "[kafka]" in str(error)
