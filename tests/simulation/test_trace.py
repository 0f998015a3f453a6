"""Traces: what is read, and what is refused with its line."""

import gzip
from pathlib import Path

import pytest

from pice.errors import InputError
from pice.simulation.trace import Arrival, read_trace

HEAD = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


def trace(folder: Path, text: str) -> Path:
    path = folder / "trace.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_arrivals_count_from_the_first(tmp_path: Path) -> None:
    text = HEAD + "2023-11-16 18:15:59.9999999,374,44\n2023-11-16 18:16:00,396,109\n2023-11-16 18:16:01.5,0,0\n"
    first, second, third = read_trace(trace(tmp_path, text))
    assert first == Arrival(0.0, 374, 44)
    assert second.at_s == pytest.approx(1e-7, abs=1e-6)
    assert third.at_s == pytest.approx(1.5, abs=1e-5)
    assert (third.num_prompt_tokens, third.num_tokens) == (0, 1)


def test_offsets_count_and_a_mark_at_the_beginning_does_not(tmp_path: Path) -> None:
    text = f"\ufeff{HEAD}2023-11-16T18:00:00+02:00,1,2\r\n2023-11-16T16:00:01Z,3,4\r\n"
    assert read_trace(trace(tmp_path, text)) == [Arrival(0.0, 1, 2), Arrival(1.0, 3, 4)]


def test_times_may_be_seconds_and_files_packed(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_bytes(gzip.compress(f"{HEAD}10.5,1,2\n12,3,4\n".encode()))
    assert read_trace(path) == [Arrival(0.0, 1, 2), Arrival(1.5, 3, 4)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "line 1: expected the columns .*TIMESTAMP.* not there"),
        ("TIMESTAMP,ContextTokens\n1,2\n", "line 1: .* GeneratedTokens not there"),
        (HEAD + "1,2,3\nsoon,2,3\n", "line 3: expected TIMESTAMP .* got 'soon'"),
        (HEAD + "1,2,3\n,2,3\n", "line 3: .* got ''"),
        (HEAD + "1,2,3\n0.5,2,3\n", "line 3: expected times in order, got 0.5"),
        (HEAD + "1,2,3\n2,-2,3\n", "line 3: expected ContextTokens .* got '-2'"),
        (HEAD + "1,2,3\n2,2\n", "line 3: expected GeneratedTokens .* got None"),
        (HEAD + "1,2,3\n2,2,1e3\n", "line 3: expected GeneratedTokens"),
        (HEAD + "1,2,99999999999999999999\n", "line 2: expected GeneratedTokens"),
        (HEAD, "two times at least, got 0"),
        (HEAD + "1,2,3\n1,2,3\n", "two times at least, got 2"),
        (HEAD + "nan,2,3\n1,2,3\n", "line 2: .* got 'nan'"),
        (HEAD + "1,2,3\n\n\nsoon,2,3\n", "line 5: .* got 'soon'"),
        (HEAD + "1700000000000,2,3\n1700086400000,2,3\n", "line 3: .*31 days.*milliseconds"),
    ],
)
def test_what_is_no_trace_is_refused_with_its_line(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(InputError, match=rf"trace\.csv.*{says}"):
        read_trace(trace(tmp_path, text))


PACKED = gzip.compress(HEAD.encode() * 50)


@pytest.mark.parametrize(
    "data", [b"\xff\xfe\x00", PACKED[:20], PACKED[:12] + b"\xff" * 8 + PACKED[20:]], ids=["bytes", "cut", "damaged"]
)
def test_file_that_cannot_be_read_is_named(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "trace.csv"
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"trace\.csv"):
        read_trace(path)


def test_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.csv: cannot be read"):
        read_trace(tmp_path / "none.csv")
