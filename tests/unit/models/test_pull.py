"""Files from a hub that is there, slow, wrong, or gone."""

import errno
import os
import random
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("huggingface_hub")

import huggingface_hub
from filelock import FileLock

from pice.errors import ConfigError, InputError, OutputLost, PiceError, Unavailable
from pice.models import hub as hub_module
from pice.models.hub_blob import Offer
from pice.models.pull import pull_model
from pice.models.source import Source
from tests.unit.models.hub_server import COMMIT, REPO, Hub, serving, sha256

CHUNK = 1000
MODEL = random.Random(1).randbytes(10 * CHUNK)
FILES = {"small.Q4_K_M.gguf": MODEL, "small.Q8_0.gguf": b"eight", "README.md": b"# small"}
SOURCE = f"hf:{REPO}:small.Q4_K_M.gguf"
PARTS = [f"q4/big-{number:05}-of-00003.gguf" for number in (1, 2, 3)]
NEWER_PARTS = {name: f"newer {name}".encode() for name in PARTS}
TOKEN = "hf_very_secret"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", CHUNK)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving(dict(FILES)) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.endpoint)
        yield served
    huggingface_hub.close_session()


@dataclass
class Puller:
    """Pulls into a cache of its own, and keeps what is said."""

    cache: Path
    said: list[str] = field(default_factory=list)

    def __call__(self, source: str = SOURCE) -> Path:
        return pull_model(source, self.cache, self.said.append)

    def refused(self, kind: type[PiceError], source: str = SOURCE) -> str:
        with pytest.raises(kind) as refused:
            self(source)
        assert str(refused.value).isprintable()
        assert TOKEN not in str(refused.value)
        return str(refused.value)

    @property
    def repo(self) -> Path:
        return self.cache / "models--org--repo"

    def blobs(self) -> dict[str, int]:
        return {path.name: path.stat().st_size for path in self.repo.glob("blobs/*")}


@pytest.fixture
def pull(tmp_path: Path) -> Puller:
    return Puller(tmp_path / "cache")


def test_pulled_file_is_in_the_librarys_cache(hub: Hub, pull: Puller) -> None:
    path = pull()
    assert path == pull.repo / "snapshots" / COMMIT / "small.Q4_K_M.gguf"
    assert path.read_bytes() == MODEL
    assert pull.blobs() == {sha256(MODEL): len(MODEL)}
    assert pull.said == [f"{SOURCE}: 9.8 KiB", f"{SOURCE}: fetched, and its SHA-256 is right"]
    found = huggingface_hub.try_to_load_from_cache(REPO, "small.Q4_K_M.gguf", cache_dir=pull.cache)
    assert found == str(path)


def test_token_goes_to_the_hub_and_not_to_its_store(hub: Hub, pull: Puller) -> None:
    pull()
    assert hub.of_store()
    for asked in hub.asked:
        expected = None if asked.path.startswith("/store/") else f"Bearer {TOKEN}"
        assert asked.headers.get("authorization") == expected
    assert TOKEN not in "".join(pull.said)


def test_what_is_in_the_cache_is_not_fetched_again(hub: Hub, pull: Puller) -> None:
    first = pull()
    assert pull() == first
    assert len(hub.of_store()) == 1
    assert pull.said[-1] == f"{SOURCE}: in the cache already"


def test_damaged_blob_of_another_size_is_fetched_again(hub: Hub, pull: Puller) -> None:
    pull().resolve().write_bytes(MODEL[:100])
    assert pull().read_bytes() == MODEL


def test_connection_that_breaks_is_taken_up_again_where_it_broke(hub: Hub, pull: Puller) -> None:
    hub.cuts = [3 * CHUNK, 4 * CHUNK + 500]
    assert pull().read_bytes() == MODEL
    assert hub.ranges() == [None, "bytes=3000-", "bytes=7000-"]


def test_connection_that_stays_broken_is_given_up_and_what_came_is_kept(hub: Hub, pull: Puller) -> None:
    hub.cuts = [3 * CHUNK, *[0] * 6]
    assert "what came so far is kept, and the same command goes on from there" in pull.refused(Unavailable)
    assert len(hub.of_store()) == 7 - 1  # one that brought something, and 5 in a row that did not
    assert pull.blobs() == {f"{sha256(MODEL)}.part": 3 * CHUNK}
    hub.cuts = []
    assert pull().read_bytes() == MODEL
    assert hub.ranges()[-1] == "bytes=3000-"
    assert pull.blobs() == {sha256(MODEL): len(MODEL)}


def test_store_that_knows_no_ranges_is_begun_anew(hub: Hub, pull: Puller) -> None:
    hub.cuts, hub.knows_ranges = [3 * CHUNK], False
    assert pull().read_bytes() == MODEL


@pytest.mark.parametrize("size", [len(MODEL) + 1, 10 * len(MODEL)])
def test_part_that_is_too_long_is_begun_anew(hub: Hub, pull: Puller, size: int) -> None:
    part = pull.repo / "blobs" / f"{sha256(MODEL)}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * size)
    assert pull().read_bytes() == MODEL


@pytest.mark.parametrize("cut", [0, 3 * CHUNK], ids=["at once", "in two goes"])
def test_damaged_body_is_found_and_thrown_away(hub: Hub, pull: Puller, cut: int) -> None:
    damaged = MODEL[:5000] + bytes([MODEL[5000] ^ 1]) + MODEL[5001:]
    hub.stored["small.Q4_K_M.gguf"] = damaged
    hub.cuts = [cut] if cut else []
    said = pull.refused(Unavailable)
    assert f"expected SHA-256 {sha256(MODEL)}, got {sha256(damaged)}" in said
    assert pull.blobs() == {}
    assert list(pull.repo.glob("snapshots/*/*")) == []
    hub.stored.clear()
    assert pull().read_bytes() == MODEL


def test_damage_in_what_was_kept_is_found(hub: Hub, pull: Puller) -> None:
    part = pull.repo / "blobs" / f"{sha256(MODEL)}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * 500)
    assert "expected SHA-256" in pull.refused(Unavailable)
    assert pull().read_bytes() == MODEL


@pytest.mark.parametrize("body", [MODEL[:-1], MODEL + b"x"], ids=["too short", "too long"])
def test_body_of_another_size_is_refused(hub: Hub, pull: Puller, body: bytes) -> None:
    hub.stored["small.Q4_K_M.gguf"] = body
    assert "not as many bytes came as were announced" in pull.refused(Unavailable)
    assert sha256(MODEL) not in pull.blobs()


def test_file_without_sha256_is_taken_and_that_is_said(hub: Hub, pull: Puller) -> None:
    hub.head = {"X-Linked-ETag": f'"{"b" * 40}"'}
    assert pull().read_bytes() == MODEL
    assert pull.said[-1] == f"{SOURCE}: fetched; the hub gives no SHA-256 to check it by"


def test_file_of_unknown_size_is_taken_and_checked(hub: Hub, pull: Puller) -> None:
    hub.head, hub.cuts = {"X-Linked-Size": None}, [3 * CHUNK]
    assert pull().read_bytes() == MODEL
    assert pull.said[0] == f"{SOURCE}: of unknown size"


def test_file_stored_by_xet_comes_by_http_without_hf_xet(
    hub: Hub, pull: Puller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "hf_xet", None)
    hub.head = {"X-Xet-Hash": "c" * 64, "X-Xet-Refresh-Route": f"{hub.endpoint}/api/xet"}
    assert pull().read_bytes() == MODEL
    assert not [asked for asked in hub.asked if "xet" in asked.path]


def test_all_parts_of_a_split_file_are_pulled(hub: Hub, pull: Puller) -> None:
    hub.files |= {name: name.encode() for name in PARTS}
    path = pull(f"hf:{REPO}:{PARTS[1]}")
    assert path.name == "big-00001-of-00003.gguf"
    assert sorted(each.name for each in path.parent.iterdir()) == [Path(name).name for name in PARTS]


def test_file_is_of_the_commit_that_was_checked_though_the_repo_changes_meanwhile(hub: Hub, pull: Puller) -> None:
    hub.pushes = [{"small.Q4_K_M.gguf": b"newer"}]
    path = pull()
    assert path == pull.repo / "snapshots" / COMMIT / "small.Q4_K_M.gguf"
    assert path.read_bytes() == MODEL
    assert pull.blobs() == {sha256(MODEL): len(MODEL)}
    assert pull().read_bytes() == b"newer"


def test_parts_are_of_one_commit_though_the_repo_changes_meanwhile(hub: Hub, pull: Puller) -> None:
    hub.files, hub.pushes = {name: name.encode() for name in PARTS}, [NEWER_PARTS]
    path = pull(f"hf:{REPO}:{PARTS[0]}")
    found = [path.with_name(Path(name).name).read_bytes() for name in PARTS]
    assert found == [name.encode() for name in PARTS]


def test_parts_beside_one_from_the_cache_are_of_its_commit(
    hub: Hub, pull: Puller, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.files = {name: name.encode() for name in PARTS}
    path = pull(f"hf:{REPO}:{PARTS[0]}")
    hub.push(NEWER_PARTS)
    ask, failures = hub_module.ask, [Unavailable("gone for a moment")]

    def ask_at_last(source: Source) -> Offer:
        if failures:
            raise failures.pop()
        return ask(source)

    monkeypatch.setattr(hub_module, "ask", ask_at_last)
    assert pull(f"hf:{REPO}:{PARTS[0]}") == path
    assert sorted(pull.blobs()) == sorted(sha256(name.encode()) for name in PARTS)


@pytest.mark.parametrize("is_link", [True, False], ids=["a link", "a file"])
def test_other_file_where_the_checked_one_belongs_is_removed_and_that_is_said(
    hub: Hub, pull: Puller, is_link: bool
) -> None:
    path, other = pull(), pull.cache / "other"
    path.unlink()
    (other if is_link else path).write_bytes(MODEL[::-1])
    if is_link:
        path.symlink_to(other)
    assert f"expected {path} to be what came, got another file: it is removed" in pull.refused(Unavailable)
    assert not path.exists()
    assert pull().read_bytes() == MODEL


def test_copy_of_the_checked_file_is_as_good_where_there_are_no_links(hub: Hub, pull: Puller) -> None:
    path = pull()
    path.unlink()
    path.write_bytes(MODEL)
    assert pull() == path


def test_hub_that_answers_of_another_commit_than_asked_is_not_trusted(hub: Hub, pull: Puller) -> None:
    hub.head = {"X-Repo-Commit": "b" * 40}
    assert "does not answer as a hub does" in pull.refused(Unavailable, f"{SOURCE}@{COMMIT}")


def test_revision_is_asked_for(hub: Hub, pull: Puller) -> None:
    assert pull(f"{SOURCE}@{COMMIT}").read_bytes() == MODEL
    assert "no revision 'v9'" in pull.refused(InputError, f"{SOURCE}@v9")


def test_with_no_network_the_cache_is_used(hub: Hub, pull: Puller, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pull()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert pull() == path
    assert f"{SOURCE}: http://127.0.0.1:9 could not be reached (" in pull.said[-2]
    assert pull.said[-1] == f"{SOURCE}: taken from the cache, as it was fetched before"


def test_with_no_network_and_an_empty_cache_it_says_what_could_not_be_reached(
    hub: Hub, pull: Puller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://someone:password@127.0.0.1:9")
    said = pull.refused(Unavailable)
    assert "http://127.0.0.1:9 could not be reached" in said
    assert "a file that is on this machine already can be given by its path" in said
    assert "password" not in said


def test_offline_the_hub_is_not_asked(hub: Hub, pull: Puller, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pull()
    hub.asked.clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert pull() == path
    assert "could not be reached (HF_HUB_OFFLINE is set)" in pull.refused(Unavailable, f"hf:{REPO}:small.Q8_0.gguf")
    assert hub.asked == []


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_hub_that_is_down_is_asked_once(hub: Hub, pull: Puller, status: int) -> None:
    hub.refusal = (status, "")
    assert f"{hub.endpoint} answered {status}: try again later" in pull.refused(Unavailable)
    assert len(hub.asked) == 1


def test_hub_that_does_not_answer_is_not_waited_for(pull: Puller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "ANSWER_TIMEOUT_S", 0.05)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert "could not be reached (timed out)" in pull.refused(Unavailable)


REFUSALS = {
    "gated": ((403, "GatedRepo"), "access is restricted: ask for it at {repo} and set HF_TOKEN"),
    "no repo": ((401, "RepoNotFound"), "no such repo at {repo}, or it is private"),
    "no repo, no code": ((404, ""), "no such repo at {repo}"),
    "refused token": ((401, ""), "set HF_TOKEN to a token that may read it"),
    "forbidden": ((403, ""), "{repo} refuses access (403)"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusal_of_the_hub_says_what_to_do(hub: Hub, pull: Puller, name: str) -> None:
    hub.refusal, expected = REFUSALS[name]
    assert expected.format(repo=f"{hub.endpoint}/{REPO}") in pull.refused(InputError)


def test_file_that_is_not_there_brings_up_those_that_resemble_it(hub: Hub, pull: Puller) -> None:
    said = pull.refused(InputError, f"hf:{REPO}:q8_0")
    assert said.endswith(f"no such file at {hub.endpoint}/{REPO}, which has small.Q8_0.gguf, small.Q4_K_M.gguf")


def test_names_from_the_hub_are_shown_without_control_characters(hub: Hub, pull: Puller) -> None:
    hub.files = {"a\x1b[2J.gguf": b"", **{f"{number}.gguf": b"" for number in range(9)}}
    said = pull.refused(InputError, f"hf:{REPO}:a")
    assert r"which has a\x1b[2J.gguf, " in said
    assert said.endswith(", ...")


@pytest.mark.parametrize(
    ("listing", "end"),
    [
        (b"[]", ", which has no GGUF file"),
        (b"<html>", "/org/repo"),
        (b"{}", ", which has no GGUF file"),
        (b"[3]", "/org/repo"),
        (b'[{"x": 1}]', "/org/repo"),
    ],
)
def test_listing_that_makes_no_sense_is_left_out(hub: Hub, pull: Puller, listing: bytes, end: str) -> None:
    hub.listing = listing
    assert pull.refused(InputError, f"hf:{REPO}:none.gguf").endswith(end)


@pytest.mark.parametrize(
    "head",
    [
        {"X-Repo-Commit": None},
        {"X-Linked-ETag": None},
        {"X-Repo-Commit": "../../elsewhere"},
        {"X-Linked-ETag": '"../../../elsewhere"'},
    ],
    ids=str,
)
def test_what_answers_like_no_hub_is_not_trusted(hub: Hub, pull: Puller, head: dict[str, str | None]) -> None:
    hub.head = head
    assert "does not answer as a hub does" in pull.refused(Unavailable)
    assert not pull.cache.exists()


def test_file_too_large_for_plain_http_is_refused(hub: Hub, pull: Puller) -> None:
    hub.head = {"X-Linked-Size": "50000000001"}
    assert "at most 50000000000 bytes, got 50000000001" in pull.refused(InputError)


def test_disk_with_no_room_is_said_before_anything_is_fetched(
    hub: Hub, pull: Puller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=len(MODEL) - 1))
    assert f"expected room for {len(MODEL)} bytes, got {len(MODEL) - 1}" in pull.refused(OutputLost)
    assert hub.of_store() == []


def fails(number: int) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOSPC, "the disk is full; what came so far is kept: make room, or use --cache-dir"),
        (errno.EDQUOT, "the disk is full"),
        (errno.EROFS, "cannot be written: Read-only file system"),
    ],
)
def test_disk_that_takes_no_more_is_said(
    hub: Hub, pull: Puller, monkeypatch: pytest.MonkeyPatch, number: int, expected: str
) -> None:
    monkeypatch.setattr("huggingface_hub.file_download.http_get", fails(number))
    assert expected in pull.refused(OutputLost)


def test_cache_that_is_no_folder_is_refused(hub: Hub, pull: Puller) -> None:
    pull.cache.write_bytes(b"")
    assert f"{pull.cache}" in pull.refused(OutputLost)


def test_file_that_another_process_fetches_is_left_to_it(
    hub: Hub, pull: Puller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "LOCK_TIMEOUT_S", 0.01)
    lock = pull.cache / ".locks" / "models--org--repo" / f"{sha256(MODEL)}.lock"
    lock.parent.mkdir(parents=True)
    with FileLock(lock):
        assert "another process is fetching it" in pull.refused(Unavailable)
    assert pull().read_bytes() == MODEL


@pytest.mark.parametrize(
    "endpoint",
    [
        "huggingface.co",
        "ftp://hub",
        "http://",
        "http://[::1",
        "http://h:x",
    ],
)
def test_endpoint_that_is_no_address_is_refused(pull: Puller, monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    assert "HF_ENDPOINT must be an address like https://huggingface.co" in pull.refused(ConfigError)


def test_without_the_library_the_way_to_install_it_is_said(pull: Puller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert 'pip install "pice[hub]"' in pull.refused(ConfigError)


def test_another_version_of_the_library_is_refused(pull: Puller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "__version__", "1.3.0")
    assert "expected version 2 of huggingface_hub, got 1.3.0" in pull.refused(ConfigError)
