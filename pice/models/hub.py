"""Files of the Hugging Face hub, in its own cache folder; the one file that imports huggingface_hub.

`hf_hub_download` of version 2 begins anew after an interruption, and takes what came for what was meant. So a file
first becomes the cache's blob by the library's own `http_get`: it comes into a part file that outlives an interruption,
and gets the blob's name when its SHA-256 is right. `hf_hub_download` then finds the blob and links it. All of it is
plain HTTP; hf_xet is neither needed nor used.
"""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

from pice.errors import ConfigError, InputError, Unavailable
from pice.models.hub_blob import Offer, check_placed, make_blob
from pice.models.hub_refusal import address, is_address, not_written, out_of_reach, refused
from pice.models.printable import shown
from pice.models.source import Source

VERSION = 2
ANSWER_TIMEOUT_S = 5.0
"""To connect to the hub (to each of its addresses), and for it to answer; `HF_HUB_ETAG_TIMEOUT` sets another."""
LOCK_TIMEOUT_S = 1.0
MAX_PLAIN_BYTES = 50_000_000_000
"""The hub gives no larger file over plain HTTP."""

_COMMIT = re.compile(r"[0-9a-f]{40}")
_BY_PATH = "a file that is on this machine already can be given by its path"
_SAFE_NAME = re.compile(r"\w[\w.-]{0,127}", re.ASCII)


def ask(source: Source) -> Offer:
    """Asks the hub, once.

    Raises:
        InputError: there is no such file, or no access to it.
        Unavailable: the hub cannot be reached, or what answers is none.
        ConfigError: huggingface_hub is not installed, or its environment is wrong.
    """
    with _errors_told(source):
        hub = _library()
        found = hub.get_hf_file_metadata(_url(hub, source, source.revision), timeout=_timeout_s(hub))
    commit, etag = found.commit_hash or "", found.etag or ""
    is_asked = commit == source.revision or not _COMMIT.fullmatch(source.revision)
    if not is_asked or not _COMMIT.fullmatch(commit) or not _SAFE_NAME.fullmatch(etag):
        raise Unavailable(
            f"{source}: {address(_endpoint())} does not answer as a hub does: look at HF_ENDPOINT and at proxies"
        )
    return Offer(source, commit, etag, found.size)


def fetch(offer: Offer, cache_dir: Path | None) -> bool:
    """Makes the file the cache's blob, going on with what came before; False if it was there already.

    Progress is shown on standard error if that is a terminal. A connection that breaks, or brings nothing for
    `HF_HUB_DOWNLOAD_TIMEOUT` (10 s), is taken up again up to 5 times in a row, 1 s apart.

    Raises:
        InputError: the file is too large.
        OutputLost: it cannot be written; what came is kept.
        Unavailable: the connection is gone for good (what came is kept), the SHA-256 is wrong (what came is thrown
            away), or another process fetches the file.
    """
    if (offer.size_bytes or 0) > MAX_PLAIN_BYTES:
        raise InputError(
            f"{offer.source}: expected a file of at most {MAX_PLAIN_BYTES} bytes, got {offer.size_bytes}: "
            "fetch it by huggingface_hub's own `hf download` and give its path"
        )
    with _errors_told(offer.source, "what came so far is kept, and the same command goes on from there"):
        hub = _library()
        repo = _repo(hub, offer.source, cache_dir)
        with _locked(hub, offer, repo.parent / ".locks" / repo.name / f"{offer.etag}.lock"):
            return make_blob(offer, repo / "blobs" / offer.etag, partial(_bring, hub, offer))


def place(offer: Offer, cache_dir: Path | None) -> Path:
    """Where the file is, now that its blob is in the cache. It is of the offer's commit, whatever came after that, and
    `cached` finds it by the name that was asked for.

    Raises:
        Unavailable: another file stands there; it is removed.
    """
    with _errors_told(offer.source):
        hub = _library()
        path = _download(hub, replace(offer.source, revision=offer.commit), cache_dir, local_files_only=False)
        repo = _repo(hub, offer.source, cache_dir)
        check_placed(offer, path, repo / "blobs" / offer.etag)
        if offer.source.revision != offer.commit:
            _write(repo / "refs" / offer.source.revision, offer.commit)
        return path


def cached(source: Source, cache_dir: Path | None) -> Path | None:
    """Where the file is, if it was fetched before; the hub is not asked."""
    with _errors_told(source):
        hub = _library()
        try:
            return _download(hub, source, cache_dir, local_files_only=True)
        except hub.errors.LocalEntryNotFoundError:
            return None


def commit_of(source: Source, path: Path) -> str:
    """Of which commit a file in the cache is."""
    return path.parents[len(Path(source.file).parts) - 1].name


def _library() -> Any:
    """The package, with its warnings off, as what fails is said by us, and its telemetry, which asks the hub first.

    Raises:
        ConfigError: it is not installed, is of another version, or a variable that it reads is wrong.
    """
    try:
        import huggingface_hub
        import huggingface_hub.errors
        import huggingface_hub.file_download
    except ImportError as error:
        raise ConfigError(f'pulling from the hub needs huggingface_hub: pip install "pice[hub]" ({error})') from error
    except ValueError as error:
        raise ConfigError(f"a variable of the environment that begins with HF_ is wrong: {error}") from error
    if not huggingface_hub.__version__.startswith(f"{VERSION}."):
        raise ConfigError(
            f'expected version {VERSION} of huggingface_hub, got {huggingface_hub.__version__}: pip install "pice[hub]"'
        )
    huggingface_hub.logging.set_verbosity(logging.ERROR)
    huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True
    return huggingface_hub


def _download(hub: Any, source: Source, cache_dir: Path | None, *, local_files_only: bool) -> Path:
    path = hub.hf_hub_download(
        source.repo,
        source.file,
        revision=source.revision,
        cache_dir=cache_dir,
        endpoint=_endpoint(),
        etag_timeout=_timeout_s(hub),
        local_files_only=local_files_only,
    )
    return Path(path)


def _bring(hub: Any, offer: Offer, file: BinaryIO, num_kept: int) -> None:
    hub.file_download.http_get(
        _url(hub, offer.source, offer.commit),
        file,
        resume_size=num_kept,
        headers={**hub.utils.build_hf_headers(), "accept-encoding": "identity"},
        expected_size=offer.size_bytes,
        displayed_filename=shown(offer.source.file),
    )


def _write(path: Path, text: str) -> None:
    """In one go: nobody reads half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(text, encoding="ascii")
    part.replace(path)


@contextmanager
def _locked(hub: Any, offer: Offer, path: Path) -> Iterator[None]:
    """Holds the library's own lock on a blob."""
    import filelock

    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with hub.utils.WeakFileLock(path, timeout=LOCK_TIMEOUT_S):
            yield
    except filelock.Timeout as error:
        raise Unavailable(f"{offer.source}: another process is fetching it: wait for it, then try again") from error


def _url(hub: Any, source: Source, revision: str) -> str:
    url: str = hub.hf_hub_url(source.repo, source.file, revision=revision, endpoint=_endpoint())
    return url


def _repo(hub: Any, source: Source, cache_dir: Path | None) -> Path:
    """Its folder in the cache."""
    cache = Path(hub.constants.HF_HUB_CACHE if cache_dir is None else cache_dir).expanduser().resolve()
    return cache / str(hub.file_download.repo_folder_name(repo_id=source.repo, repo_type="model"))


def _endpoint() -> str:
    """Raises `ConfigError` if it is no address."""
    given = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    if not is_address(given):
        raise ConfigError(f"HF_ENDPOINT must be an address like https://huggingface.co, got '{shown(given)}'")
    return given


def _timeout_s(hub: Any) -> float:
    return float(hub.constants.HF_HUB_ETAG_TIMEOUT) if "HF_HUB_ETAG_TIMEOUT" in os.environ else ANSWER_TIMEOUT_S


@contextmanager
def _errors_told(source: Source, advice: str = _BY_PATH) -> Iterator[None]:
    """Turns what the library raises into an error of ours; `advice` is for when the hub is out of reach."""
    errors = _library().errors
    import httpx2

    try:
        yield
    except errors.HfHubHTTPError as error:
        code = error.response.headers.get("X-Error-Code", "")
        names = _names(source) if code == "EntryNotFound" else None
        raise refused(source, _endpoint(), error.response.status_code, code, names) from error
    except errors.OfflineModeIsEnabled as error:
        raise out_of_reach(source, _endpoint(), "HF_HUB_OFFLINE is set", advice) from error
    except (httpx2.HTTPError, httpx2.InvalidURL, errors.LocalEntryNotFoundError) as error:
        raise out_of_reach(source, _endpoint(), str(error) or type(error).__name__, advice) from error
    except OSError as error:
        raise not_written(source, error) from error
    except ValueError as error:
        raise InputError(f"{source}: {shown(str(error), 300)}") from error


def _names(source: Source) -> list[str] | None:
    """The GGUF files of the repo (of its first 1000 files); None if the hub does not tell."""
    import httpx2

    hub = _library()
    url = f"{_endpoint()}/api/models/{source.repo}/tree/{quote(source.revision, safe='')}?recursive=true"
    try:
        answer = hub.utils.get_session().get(url, headers=hub.utils.build_hf_headers(), timeout=_timeout_s(hub))
        hub.utils.hf_raise_for_status(answer)
        return [str(each["path"]) for each in answer.json() if str(each["path"]).endswith(".gguf")]
    except (httpx2.HTTPError, OSError, ValueError, KeyError, TypeError):
        return None
