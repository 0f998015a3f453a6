import errno
import fcntl
import json
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pice.batch.files import BatchFiles, Start, errors_path
from pice.batch.format import BatchItem, Key, failure_line, success_line
from pice.core import Answer, Plan, Sampling
from pice.errors import InputError, OutputLost, RequestFailed


def answered(custom_id: str, text: str = "Yes.") -> bytes:
    answer = Answer(f"req_{custom_id}", text, "cloud", "stop", 1, Plan("cloud", "short"))
    return success_line(BatchItem(custom_id, 1, "m", (), Sampling()), answer, created=0)


def failed(key: Key) -> bytes:
    return failure_line(key, RequestFailed("no"), request_id="req_1")


def keys(path: Path) -> list[Key]:
    lines = [json.loads(raw) for raw in path.read_bytes().splitlines()]
    return [line["custom_id"] or line["line"] for line in lines]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


@contextmanager
def file_size_limit(limit_bytes: int) -> Iterator[None]:
    """A disk with room for that many bytes in a file; a write beyond them is cut, the next one fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def test_results_are_known_when_the_files_are_opened_again(out: Path) -> None:
    with BatchFiles(out) as files:
        files.add_answer("a", answered("a"))
        files.add_failure("b", failed("b"))
        files.add_failure(3, failed(3))
        assert (files.answered, files.failed) == ({"a"}, {"b", 3})
    assert (keys(out), keys(errors_path(out))) == (["a"], ["b", 3])
    with BatchFiles(out) as files:
        assert (files.answered, files.failed) == ({"a"}, {"b", 3})
        assert "a" in files
        assert 3 in files
        assert "3" not in files


def test_single_file_takes_failures_too_and_leaves_no_other(out: Path) -> None:
    with BatchFiles(out, single_file=True) as files:
        files.add_answer("a", answered("a"))
        files.add_failure("b", failed("b"))
    assert keys(out) == ["a", "b"]
    assert not errors_path(out).exists()


@pytest.mark.parametrize("single_first", [True, False])
def test_failures_of_the_other_layout_count_and_can_be_forgotten(out: Path, single_first: bool) -> None:
    with BatchFiles(out, single_file=single_first) as files:
        files.add_failure("b", failed("b"))
    with BatchFiles(out, single_file=not single_first) as files:
        assert files.failed == {"b"}
        files.forget_failed()
        assert "b" not in files
    assert keys(out) == []


def test_file_of_failures_is_removed_when_it_has_none(out: Path) -> None:
    with BatchFiles(out) as files:
        files.add_answer("a", answered("a"))
    assert not errors_path(out).exists()


@pytest.mark.parametrize("kind", ["answer", "failure"])
def test_file_torn_at_any_byte_of_its_last_line_keeps_the_lines_before(out: Path, kind: str) -> None:
    last = answered("b", text="Ça.") if kind == "answer" else failed("b")
    whole = answered("a") + failed(7)
    for cut in range(len(last)):
        out.write_bytes(whole + last[:cut])
        with BatchFiles(out, single_file=True) as files:
            assert (files.answered, files.failed) == ({"a"}, {7})
            files.add_answer("b", answered("b"))
        assert keys(out) == ["a", 7, "b"]


@pytest.mark.parametrize("cut", [0, 5, 100])
def test_file_with_zeros_where_power_was_lost_keeps_the_lines_before(out: Path, cut: int) -> None:
    out.write_bytes(answered("a") + answered("b")[:cut] + bytes(300))
    BatchFiles(out).close()
    assert out.read_bytes() == answered("a")


@pytest.mark.parametrize(
    "content",
    [
        answered("a") + answered("b")[:50] + b"\n" + answered("c"),
        answered("a") + b"\n" + answered("c"),
        answered("a") + b"milk, eggs",
        b"milk, eggs",
        b'{"custom_id": "a", "method": "POST"}\n',
        b'{"id": 1, "custom_id": [1], "response": null, "error": null}\n',
        b"\x89PNG\r\n\x1a\n",
    ],
    ids=["torn inside", "blank inside", "other text after", "other text", "an input", "odd key", "binary"],
)
def test_file_that_holds_something_else_is_refused_and_left_as_it_is(out: Path, content: bytes) -> None:
    out.write_bytes(content)
    with pytest.raises(InputError, match=rf"line {2 if content.startswith(answered('a')) else 1} is no result"):
        BatchFiles(out)
    assert out.read_bytes() == content
    assert not errors_path(out).exists()


def test_second_process_on_the_same_output_is_refused(out: Path) -> None:
    with BatchFiles(out, single_file=True) as files:
        with pytest.raises(InputError, match="is being written by another process"):
            BatchFiles(out)
        files.add_failure("a", failed("a"))
    with BatchFiles(out, single_file=True) as files:
        files.forget_failed()
        with pytest.raises(InputError, match="is being written by another process"):
            BatchFiles(out)
    BatchFiles(out).close()


def test_lock_on_a_file_that_was_replaced_meanwhile_is_taken_anew(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replacement = out.with_name("new.jsonl")
    replacement.write_bytes(answered("a"))
    flock = fcntl.flock

    def replaced_before(fd: int, operation: int) -> None:
        if replacement.exists():
            replacement.rename(out)
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", replaced_before)
    with BatchFiles(out) as files:
        files.add_answer("b", answered("b"))
    assert keys(out) == ["a", "b"]


def test_short_writes_make_a_whole_line(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, bytes(data)[:7]))
    with BatchFiles(out) as files:
        files.add_answer("a", answered("a"))
    assert out.read_bytes() == answered("a")


def test_full_disk_keeps_whole_lines_only_and_says_so(out: Path) -> None:
    with BatchFiles(out) as files:
        files.add_answer("a", answered("a"))
        with file_size_limit(len(answered("a")) + 40), pytest.raises(OutputLost, match="whole and kept"):
            files.add_answer("b", answered("b"))
        assert out.read_bytes() == answered("a")
        assert "b" not in files
        files.add_answer("c", answered("c"))
    assert keys(out) == ["a", "c"]


def test_disk_that_refuses_to_sync_is_reported_and_the_lock_let_go(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    files = BatchFiles(out)
    files.add_answer("a", answered("a"))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", broken)
        with pytest.raises(OutputLost, match="may not be on the disk"):
            files.close()
    BatchFiles(out).close()


def test_forgetting_failures_keeps_every_answer_and_the_mode_of_the_file(out: Path) -> None:
    out.write_bytes(answered("a") + failed("b") + answered("c") + failed(9))
    out.chmod(0o640)
    with BatchFiles(out, single_file=True) as files:
        files.forget_failed()
        assert (files.answered, files.failed) == ({"a", "c"}, set())
        files.add_answer("b", answered("b"))
    assert out.read_bytes() == answered("a") + answered("c") + answered("b")
    assert out.stat().st_mode & 0o777 == 0o640


def test_forgetting_failures_on_a_full_disk_changes_nothing(out: Path) -> None:
    content = answered("a") + failed("b") + answered("c")
    out.write_bytes(content)
    with BatchFiles(out, single_file=True) as files:
        with file_size_limit(len(answered("a")) + 10), pytest.raises(OutputLost, match="as it was"):
            files.forget_failed()
        assert files.failed == {"b"}
    assert out.read_bytes() == content
    assert list(out.parent.iterdir()) == [out]


def test_half_rewritten_copy_of_a_killed_process_is_removed(out: Path) -> None:
    leftover = out.with_name("out.jsonl.rewritten")
    leftover.write_bytes(answered("a")[:20])
    BatchFiles(out).close()
    assert not leftover.exists()


def test_symbolic_link_stays_a_link_when_failures_are_forgotten(tmp_path: Path, out: Path) -> None:
    real = tmp_path / "real.jsonl"
    real.write_bytes(failed("b"))
    out.symlink_to(real)
    with BatchFiles(out) as files:
        files.forget_failed()
        files.add_answer("b", answered("b"))
    assert out.is_symlink()
    assert keys(real) == ["b"]


@pytest.mark.parametrize("where", ["answers", "failures"])
def test_new_refuses_former_results_and_overwrite_throws_them_away(out: Path, where: str) -> None:
    path = out if where == "answers" else errors_path(out)
    path.write_bytes(failed("b"))
    with pytest.raises(InputError, match=f"{path.name} holds 1 results"):
        BatchFiles(out, start="new")
    assert keys(path) == ["b"]
    assert not (errors_path(out) if where == "answers" else out).exists()
    with BatchFiles(out, start="overwrite") as files:
        assert "b" not in files
    assert keys(out) == []


@pytest.mark.parametrize("start", ["resume", "new", "overwrite"])
def test_output_that_is_not_there_or_empty_can_be_started_in_any_way(out: Path, start: Start) -> None:
    BatchFiles(out, start=start).close()
    BatchFiles(out, start=start).close()
    assert out.read_bytes() == b""


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("folder", "it is a folder"),
        ("missing/out.jsonl", "its folder does not exist"),
        ("file/out.jsonl", "its folder is not a folder"),
        ("..", "it is a folder"),
        ("device", "it must be an ordinary file"),
    ],
)
def test_output_that_cannot_be_written_is_refused(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "device").symlink_to("/dev/null")
    with pytest.raises(InputError, match=reason):
        BatchFiles(tmp_path / name)


@pytest.mark.parametrize("name", [".", "/", "-"])
def test_output_that_names_no_file_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="cannot be the output: name a file"):
        BatchFiles(Path(name))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_output_in_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="Permission denied"):
        BatchFiles(tmp_path / "out.jsonl")


@pytest.mark.parametrize("link", [False, True])
def test_input_as_its_own_output_is_refused(tmp_path: Path, out: Path, link: bool) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(b"{}\n")
    if link:
        out.symlink_to(source)
    with pytest.raises(InputError, match="is the input itself"):
        BatchFiles(out if link else source, source=source)
    assert source.read_bytes() == b"{}\n"
