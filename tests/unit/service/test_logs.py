"""Log lines for people and for machines."""

import logging
import re
import warnings
from collections.abc import Iterator

import orjson
import pytest

from pice.node.context import request_id
from pice.service.logs import set_up_logs

log = logging.getLogger("pice.node.edge")

JUNK = 'two\nlines "quoted" \x1b[31m \x00 \udcff \u2028 \u202e end'


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    root, names = logging.getLogger(), ("aiokafka", "httpcore", "httpx", "redis")
    handlers, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in names}
    filtered = {name: logging.getLogger(name) for name in root.manager.loggerDict if name.startswith(names)}
    filters = {name: logger.filters[:] for name, logger in filtered.items()}
    for logger in filtered.values():
        logger.filters.clear()
    yield
    for name, logger in filtered.items():
        logger.filters[:] = filters[name]
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)
    for name, its_level in levels.items():
        logging.getLogger(name).setLevel(its_level)


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.removesuffix("\n").split("\n")


def test_json_line_says_when_where_what_and_for_which_request(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logs("json", "info", "paris")
    token = request_id.set("r-1")
    log.warning("segment %s/%d failed", "r-1", 3)
    request_id.reset(token)
    (line,) = lines(capsys)
    fields = orjson.loads(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", fields.pop("time"))
    assert fields == {
        "level": "warning",
        "logger": "pice.node.edge",
        "message": "segment r-1/3 failed",
        "service": "paris",
        "request_id": "r-1",
    }


def test_json_line_without_a_request_or_an_error_has_no_such_keys(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logs("json", "info", "paris")
    log.info("up")
    assert set(orjson.loads(lines(capsys)[0])) == {"time", "level", "logger", "message", "service"}


def test_exception_stays_on_the_json_line_with_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logs("json", "info", "paris")
    try:
        raise ValueError(JUNK)
    except ValueError:
        log.exception("failed")
    (line,) = lines(capsys)
    fields = orjson.loads(line)
    assert fields["error"].startswith("ValueError(")
    assert fields["traceback"].startswith("Traceback (most recent call last):\n")
    assert "raise ValueError(JUNK)" in fields["traceback"]


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_junk_in_a_message_or_a_request_id_stays_on_its_line(
    log_format: str, capsys: pytest.CaptureFixture[str]
) -> None:
    set_up_logs("json" if log_format == "json" else "text", "info", "paris")
    token = request_id.set(JUNK)
    log.info("got %s", JUNK)
    request_id.reset(token)
    (line,) = lines(capsys)
    assert len(line.splitlines()) == 1
    assert line.isprintable()


def test_json_line_keeps_a_messages_own_line_ends(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logs("json", "info", "paris")
    log.info("two\nlines")
    assert orjson.loads(lines(capsys)[0])["message"] == "two\nlines"


def test_long_message_is_cut_and_says_how_long_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logs("json", "info", "paris")
    log.info("%s", "a" * 100_000)
    assert orjson.loads(lines(capsys)[0])["message"] == "a" * 8192 + "... (100000 characters)"


def test_end_of_a_long_traceback_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logs("json", "info", "paris")
    try:
        raise ValueError("begin" + "." * 20_000 + "end")
    except ValueError:
        log.exception("failed")
    assert orjson.loads(lines(capsys)[0])["traceback"].endswith(".end")


def test_text_line_is_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logs("text", "info", "paris")
    token = request_id.set("r-1")
    log.warning("slow")
    request_id.reset(token)
    log.info("fine")
    slow, fine = lines(capsys)
    assert re.fullmatch(r"\S+Z WARNING pice\.node\.edge \[r-1\] slow", slow)
    assert re.fullmatch(r"\S+Z INFO    pice\.node\.edge fine", fine)


def test_text_shows_a_traceback_below_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logs("text", "info", "paris")
    try:
        raise ValueError("no")
    except ValueError:
        log.exception("failed")
    shown = lines(capsys)
    assert shown[1] == "Traceback (most recent call last):"
    assert shown[-1] == "ValueError: no"


def test_other_packages_are_heard_from_warning_on(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logs("text", "info", "paris")
    logging.getLogger("aiokafka.conn").info("chatter")
    logging.getLogger("httpx").info("chatter")
    logging.getLogger("redis").warning("news")
    log.debug("detail")
    (line,) = lines(capsys)
    assert line.endswith("redis news")


def test_client_that_tells_of_every_try_is_heard_every_30_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logs("text", "info", "paris")
    client = logging.getLogger("aiokafka.conn")
    for second in range(61):
        for port in (9092, 9093):
            record = client.makeRecord(client.name, logging.ERROR, "", 0, "no answer at %s", (port,), None)
            record.created = second
            client.handle(record)
    assert [line.rsplit(" ", 1)[1] for line in lines(capsys)] == ["9092", "9093"] * 3


def test_node_that_repeats_itself_is_heard_each_time(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logs("text", "info", "paris")
    for _ in range(3):
        log.info("again")
    assert len(lines(capsys)) == 3


def test_debug_hears_everything(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logs("text", "info", "paris")
    set_up_logs("text", "debug", "paris")
    for _ in range(2):
        logging.getLogger("aiokafka.conn").debug("chatter")
    log.debug("detail")
    assert [line.rsplit(" ", 1)[1] for line in lines(capsys)] == ["chatter", "chatter", "detail"]


def test_warning_of_python_is_a_line_like_others(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logs("json", "info", "paris")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old", UserWarning, stacklevel=1)
    (line,) = lines(capsys)
    assert "UserWarning: old" in orjson.loads(line)["message"]
