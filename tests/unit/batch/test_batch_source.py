import errno
import io
import json
from pathlib import Path

import pytest

import pice.batch.format
import pice.batch.source
from pice.batch.source import read_lines, spooled, survey
from pice.errors import InputError


def line(custom_id: str) -> bytes:
    body = {"model": "m", "messages": [{"role": "user", "content": "Why?"}]}
    ask = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}
    return json.dumps(ask).encode() + b"\n"


def source(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_bytes(content)
    return path


def test_blank_lines_are_skipped_and_counted(tmp_path: Path) -> None:
    path = source(tmp_path, b"\n" + line("a") + b" \r\n\n" + line("b").rstrip(b"\n"))
    assert [(number, json.loads(raw)["custom_id"]) for number, raw in read_lines(path)] == [(2, "a"), (5, "b")]


def test_byte_order_mark_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    found = survey(source(tmp_path, b"\xef\xbb\xbf" + line("a")))
    assert set(found.keys) == {"a"}
    assert found.num_invalid == 0


def test_overlong_line_is_cut_and_the_next_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pice.batch.source, "MAX_LINE_BYTES", 200)
    monkeypatch.setattr(pice.batch.format, "MAX_LINE_BYTES", 200)
    path = source(tmp_path, b"x" * 201 + b"\n" + b"x" * 1_000 + b"\n" + line("a"))
    assert [(number, len(raw)) for number, raw in read_lines(path)][:2] == [(1, 201), (2, 201)]
    found = survey(path)
    assert set(found.keys) == {1, 2, "a"}
    assert found.num_invalid == 2
    assert found.first_fault == "line 1: must be at most 200 bytes long, got more"


def test_survey_counts_invalid_lines_and_keeps_the_first_reason(tmp_path: Path) -> None:
    bad = json.dumps({"custom_id": "b", "method": "PUT"}).encode()
    found = survey(source(tmp_path, line("a") + b"{\n" + bad))
    assert found.keys == {"a", 2, "b"}
    assert found.num_invalid == 2
    assert found.first_fault.startswith("line 2: must be one JSON object in UTF-8")


def test_custom_id_given_twice_is_refused_with_both_lines_even_if_one_is_invalid(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="lines 2 and 4 have the same custom_id 'b'"):
        survey(source(tmp_path, line("a") + line("b") + line("c") + b'{"custom_id": "b"}\n'))


def test_json_of_a_line_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[bytes] = []

    def counted(raw: bytes) -> object:
        read.append(raw)
        return json.loads(raw)

    monkeypatch.setattr("orjson.loads", counted)
    assert survey(source(tmp_path, line("a") + line("b"))).keys == {"a", "b"}
    assert len(read) == 2


@pytest.mark.parametrize(("name", "reason"), [("nothing.jsonl", "No such file"), (".", "Is a directory")])
def test_input_that_cannot_be_read_is_refused(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(InputError, match=f"cannot be read: {reason}"):
        survey(tmp_path / name)


def test_stream_is_spooled_so_that_it_can_be_read_twice_and_is_gone_after() -> None:
    with spooled(io.BytesIO(line("a") + line("b"))) as path:
        assert survey(path).keys == survey(path).keys == {"a", "b"}
    assert not path.exists()


def test_stream_that_cannot_be_read_is_refused() -> None:
    class Closed(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError(errno.EBADF, "Bad file descriptor")

    with (
        pytest.raises(InputError, match="cannot be copied to a temporary file: Bad file descriptor"),
        spooled(Closed()),
    ):
        pass
