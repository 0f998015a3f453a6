"""`pice batch run` as a user runs it: input of any kind, interruptions, kills and reruns."""

import random
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from pice.batch.files import errors_path
from tests.system.command import ROOT, Ran, batch_line, emulated, keys, pice, results, shell, started

FAST = emulated()
DONE = b'{"id":"batch_req_1","custom_id":"q00","response":{"status_code":200},"error":null}\n'


class Desk:
    """A folder with a batch in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.source, self.out = folder / "in.jsonl", folder / "out.jsonl"
        self.errors = errors_path(self.out)

    def asks(self, *lines: bytes) -> None:
        self.source.write_bytes(b"".join(lines))

    def command(self, *options: str, settings: Sequence[str] = FAST) -> list[str]:
        return ["batch", "run", "-i", "in.jsonl", "-o", "out.jsonl", *settings, *options]

    def run(self, *options: str, settings: Sequence[str] = FAST, stdin: bytes = b"") -> Ran:
        return pice(*self.command(*options, settings=settings), cwd=self.folder, stdin=stdin)

    def keys(self) -> list[str]:
        return keys(self.out, self.errors)

    def errors_said(self) -> dict[str, str]:
        """What is said of each failed line."""
        return {
            result["custom_id"] or f"line {result['line']}": result["response"]["body"]["error"]["message"]
            for result in results(self.errors)
        }


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def ids(num: int) -> list[str]:
    return [f"q{number:02}" for number in range(num)]


def test_first_interrupt_finishes_what_was_begun_and_a_rerun_does_the_rest(desk: Desk) -> None:
    """The first line is short: once it is written, the three begun with it are being asked."""
    desk.asks(batch_line("q00", max_tokens=1), *(batch_line(name) for name in ids(12)[1:]))
    with started(*desk.command("--concurrency", "4", settings=emulated(0.05)), cwd=desk.folder) as batch:
        batch.has_written(desk.out, 1)
        batch.send(signal.SIGINT)
        ran = batch.end()
    assert ran.code == 130
    assert "finishing what was begun; interrupt again to give it up" in ran.err
    assert "left for the same command to do" in ran.err
    assert "Traceback" not in ran.err
    written = desk.out.read_bytes()
    assert set(ids(4)) <= set(desk.keys()) <= set(ids(5))
    again = desk.run()
    assert again.code == 0
    assert desk.out.read_bytes().startswith(written)
    assert desk.keys() == ids(12)


def test_second_interrupt_gives_up_what_was_begun(desk: Desk) -> None:
    desk.asks(batch_line("q00", max_tokens=1), *(batch_line(name, max_tokens=2_000) for name in ids(6)[1:]))
    with started(*desk.command("--concurrency", "4", settings=emulated(0.5)), cwd=desk.folder) as batch:
        batch.has_written(desk.out, 1)
        batch.send(signal.SIGINT)
        batch.says("interrupt again to give it up")
        batch.send(signal.SIGINT)
        ran = batch.end()
    assert ran.code == 130
    assert "Traceback" not in ran.err
    assert desk.keys() == ["q00"]
    assert desk.run().code == 0
    assert desk.keys() == ids(6)


def test_killed_in_the_middle_again_and_again_each_custom_id_has_one_result(desk: Desk) -> None:
    num, rng, kept = 40, random.Random(5), b""
    desk.asks(
        *(batch_line(name, pice={}) if number % 8 == 7 else batch_line(name) for number, name in enumerate(ids(num)))
    )
    for _ in range(4):
        with started(*desk.command("--concurrency", "3", settings=emulated(0.002)), cwd=desk.folder) as batch:
            batch.has_written(desk.out, kept.count(b"\n") + rng.randint(1, 6))
            batch.send(signal.SIGKILL)
            assert batch.end().code == -signal.SIGKILL
        found = desk.out.read_bytes()
        assert found.startswith(kept)
        kept = found[: found.rfind(b"\n") + 1]
        assert len(set(keys(desk.out))) == kept.count(b"\n") < num
    ran = desk.run()
    assert ran.code == 0
    assert desk.keys() == ids(num)
    assert desk.out.read_bytes().startswith(kept)


def test_torn_last_line_is_done_again(desk: Desk) -> None:
    desk.asks(*map(batch_line, ids(3)))
    assert desk.run().code == 0
    whole = desk.out.read_bytes()
    desk.out.write_bytes(whole[:-30])
    ran = desk.run()
    assert ran.code == 0
    assert "3 lines: 3 answered (2 of them before)" in ran.err
    assert desk.keys() == ids(3)


def test_second_process_on_the_same_output_is_refused_and_the_first_goes_on(desk: Desk) -> None:
    desk.asks(batch_line("q00", max_tokens=1), batch_line("q01"))
    with started(*desk.command(settings=emulated(0.05)), cwd=desk.folder) as first:
        first.has_written(desk.out, 1)
        second = desk.run("--overwrite")
        ran = first.end()
    assert second.code == 2
    assert "out.jsonl is being written by another process: wait for it, or name another output" in second.refusal
    assert ran.code == 0
    assert desk.keys() == ids(2)


def test_failures_are_asked_again_only_when_wanted(desk: Desk) -> None:
    desk.asks(batch_line("short"), batch_line("long", max_tokens=4_096))
    assert desk.run().code == 3
    assert (keys(desk.out), keys(desk.errors)) == (["short"], ["long"])
    assert "asks for 4096 more, but llama2-70b has a context of 4096" in desk.errors_said()["long"]
    longer = "--set=engines.cloud.context_tokens=9000"
    unchanged = desk.run(longer)
    assert unchanged.code == 3
    assert "--retry-failed asks them again" in unchanged.err
    assert keys(desk.errors) == ["long"]
    assert desk.run(longer, "--retry-failed").code == 0
    assert keys(desk.out) == ["long", "short"]
    assert not desk.errors.exists()


def test_single_file_holds_answers_and_failures(desk: Desk) -> None:
    desk.asks(batch_line("short"), batch_line("long", max_tokens=4_096), b"{\n")
    assert desk.run("--single-file").code == 3
    assert keys(desk.out) == ["line 3", "long", "short"]
    assert not desk.errors.exists()
    assert desk.run("--single-file", "--retry-failed", "--set=engines.cloud.context_tokens=9000").code == 3
    assert keys(desk.out) == ["line 3", "long", "short"]


BAD_LINES = {
    "no JSON": (b"{torn\n", "line 2: must be one JSON object in UTF-8"),
    "no object": (b'"text"\n', "line 2: must be one JSON object in UTF-8: it is of type str"),
    "no UTF-8": (b'{"custom_id": "\xff"}\n', "line 2: must be one JSON object in UTF-8"),
    "too deep": (b"[" * 100_000 + b"\n", "line 2: must be one JSON object in UTF-8"),
    "unknown url": (batch_line("x").replace(b"/v1/chat/completions", b"/v1/embeddings"), "line 2: url: "),
    "unsupported": (batch_line("x", tools=[{"type": "function"}]), "body.tools is set to"),
    "streaming": (batch_line("x", stream=True), "body.stream is set to True, which PICE cannot honour: leave it out"),
    "empty question": (batch_line("x", messages=[{"role": "user", "content": " "}]), "got an empty one"),
    "of 3 MB": (batch_line("x", messages=[{"role": "user", "content": "a" * 3_000_000}]), "1048576"),
}


@pytest.mark.parametrize(("line", "message"), BAD_LINES.values(), ids=BAD_LINES)
def test_bad_line_fails_alone(desk: Desk, line: bytes, message: str) -> None:
    desk.asks(batch_line("q00"), line, batch_line("q01"))
    ran = desk.run()
    assert ran.code == 3
    assert "3 lines: 2 answered (0 of them before), 1 failed; failures are in out.errors.jsonl" in ran.err
    assert "Traceback" not in ran.err
    assert keys(desk.out) == ids(2)
    ((name, said),) = desk.errors_said().items()
    assert name in ("x", "line 2")
    assert message in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("-i", "none.jsonl"), "none.jsonl cannot be read: No such file"),
        (("-i", "."), ". cannot be read: Is a directory"),
        (("-i", "twice.jsonl"), "lines 1 and 2 have the same custom_id 'q00': each must have its own"),
        (("-o", "none/out.jsonl"), "its folder does not exist: make it first"),
        (("-o", "/dev/full"), "it must be an ordinary file"),
        (("-o", "."), "name a file"),
        (("-o", "-"), "name a file"),
        (("-o", "in.jsonl"), "in.jsonl is the input itself: name another output"),
        (("-o", "notes.txt"), "line 1 is no result of a batch, got b'buy milk\\n'"),
        (("--set", "planner.margn=1"), "did you mean margin?"),
        (("--no-resume", "-o", "done.jsonl"), "done.jsonl holds 1 results"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_done_is_refused_and_nothing_is_touched(
    desk: Desk, options: tuple[str, ...], message: str
) -> None:
    desk.asks(batch_line("q00"))
    (desk.folder / "twice.jsonl").write_bytes(batch_line("q00") * 2)
    (desk.folder / "notes.txt").write_text("buy milk\n")
    (desk.folder / "done.jsonl").write_bytes(DONE)
    before = {path.name: path.read_bytes() for path in desk.folder.iterdir()}
    ran = desk.run(*options)
    assert ran.code == 2
    assert message in ran.refusal
    assert {path.name: path.read_bytes() for path in desk.folder.iterdir()} == before


@pytest.mark.parametrize(
    ("content", "answered"),
    [
        (b"", []),
        (b"\n \r\n", []),
        (b"\xef\xbb\xbf" + batch_line("a") + b"\r\n" + batch_line("b").replace(b"\n", b"\r\n"), ["a", "b"]),
        (batch_line("n\0ul") + batch_line("🏳️‍🌈"), ["n\0ul", "🏳️‍🌈"]),
        (batch_line("last").rstrip(b"\n"), ["last"]),
    ],
    ids=["empty", "blank", "mark and CRLF", "odd names", "no last line end"],
)
def test_input_of_any_form_is_read(desk: Desk, content: bytes, answered: list[str]) -> None:
    desk.source.write_bytes(content)
    assert desk.run().code == 0
    assert desk.keys() == sorted(answered)


def test_input_may_come_through_a_pipe(desk: Desk) -> None:
    content = batch_line("a") + batch_line("b")
    assert desk.run("-i", "-", stdin=content).code == 0
    assert desk.keys() == ["a", "b"]


def test_disk_that_fills_up_keeps_what_was_written_and_a_rerun_does_the_rest(desk: Desk) -> None:
    """A limit on the size of files stands in for the disk; Python ignores the signal that comes with it."""
    desk.asks(*map(batch_line, ids(8)))
    command = " ".join(f"'{word}'" for word in desk.command("--concurrency", "1"))
    ran = shell(f"ulimit -f 4; pice {command}", desk.folder)
    assert ran.code == 1
    assert "a result could not be written: File too large" in ran.err
    assert "make room and run the same command again" in ran.err
    assert "Traceback" not in ran.err
    written = desk.out.read_bytes()
    assert written.endswith(b"\n")
    assert 0 < len(desk.keys()) < 8
    assert desk.run().code == 0
    assert desk.out.read_bytes().startswith(written)
    assert desk.keys() == ids(8)


def test_model_that_cannot_be_loaded_leaves_an_output_that_can_be_gone_on_with(desk: Desk) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    desk.asks(batch_line("a"))
    none = [f"--set=engines.{name}.path=none.gguf" for name in ("cloud", "edge-a", "edge-b")]
    ran = desk.run(settings=("--config", str(ROOT / "config" / "llama.toml"), *none))
    assert ran.code == 2
    assert "error: none.gguf: cannot be read: No such file or directory" in ran.err
    assert desk.run().code == 0
    assert desk.keys() == ["a"]
