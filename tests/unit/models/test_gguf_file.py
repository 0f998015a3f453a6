"""Reading headers of files that are whole, cut off, damaged or hostile."""

import os
import random
import struct
from io import BytesIO
from pathlib import Path

import gguf
import pytest

from pice.errors import ConfigError, ModelLoadError
from pice.models import ggml_types, gguf_header
from pice.models.figures import Figures
from pice.models.gguf_file import GgufFile, read_gguf
from pice.models.gguf_header import Array, Header
from pice.models.lines import lines
from pice.models.memory import estimate
from pice.models.parts import ModelFiles
from pice.models.printable import json_text
from pice.models.summary import summarise
from tests.unit.models.made import HEAD, header, tensor, text, value, write_gguf

U8, BOOL, STRING, ARRAY, U32, I16 = 0, 7, 8, 9, 4, 3


def read_bytes(folder: Path, data: bytes) -> GgufFile:
    path = folder / "some.gguf"
    path.write_bytes(data)
    return read_gguf(path)


def said_by_inspect(folder: Path, data: bytes) -> str:
    """Its text, or why the file is refused. Its JSON is tried too."""
    try:
        file = read_bytes(folder, data)
        return described(file)
    except ModelLoadError as error:
        return str(error)


def described(file: GgufFile) -> str:
    files = ModelFiles(file, (file,))
    figures = Figures(file.path, file.metadata)
    memory = estimate(figures, 10, num_shared_tokens=9, num_own_tokens=9, sequences=(1, 16), n_ctx=10_000_000)
    summary = summarise(files)
    assert json_text({"model": summary, "memory": memory}).replace("\n", "").isprintable()
    return "".join(lines(summary, memory))


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_0"])
def test_header_is_read_as_gguf_reads_it(tmp_path: Path, kind: str) -> None:
    path = write_gguf(tmp_path / "m.gguf", quantization=gguf.GGMLQuantizationType[kind])
    file, reader = read_gguf(path), gguf.GGUFReader(path)
    assert (file.version, file.size_bytes) == (3, path.stat().st_size)
    theirs = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    ours = {key: list(it.values or ()) if isinstance(it, Array) else it for key, it in file.metadata.items()}
    assert ours == theirs
    assert [(it.name, it.type, it.num_elements, it.num_bytes) for it in file.tensors] == [
        (it.name, it.tensor_type.name, it.n_elements, it.n_bytes) for it in reader.tensors
    ]


def test_long_array_is_counted_and_not_kept_but_for_the_vocabulary(tmp_path: Path) -> None:
    words = [f"w{number}" for number in range(gguf_header.MAX_KEPT + 1)]
    metadata = {**HEAD, "tokenizer.ggml.tokens": words, "tokenizer.ggml.merges": words, "x": list(range(len(words)))}
    read = read_gguf(write_gguf(tmp_path / "m.gguf", metadata)).metadata
    assert read["tokenizer.ggml.tokens"] == Array(len(words), tuple(words))
    assert read["tokenizer.ggml.merges"] == read["x"] == Array(len(words), None)


def test_file_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "m.gguf").read_bytes()
    last = read_bytes(tmp_path, whole).tensors[-1]
    num_padding = -last.num_bytes % 32
    for size in range(len(whole) - num_padding):
        with pytest.raises(ModelLoadError, match=r"some\.gguf: expected .+, got ") as refused:
            read_bytes(tmp_path, whole[:size])
        assert "\n" not in str(refused.value)
    read_bytes(tmp_path, whole[: len(whole) - num_padding])


def array(key: str, kind: int, count: int, data: bytes) -> bytes:
    return value(key, ARRAY, struct.pack("<IQ", kind, count) + data)


def test_vocabulary_of_numbers_is_counted_and_not_kept(tmp_path: Path) -> None:
    count = gguf_header.MAX_KEPT + 1
    data = header(num_values=1, rest=array("tokenizer.ggml.tokens", I16, count, bytes(2 * count)))
    assert read_bytes(tmp_path, data).metadata["tokenizer.ggml.tokens"] == Array(count, None)


def test_arrays_are_kept_up_to_a_number_of_values_in_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_header, "MAX_KEPT_IN_ALL", 5)
    rest = b"".join(
        [
            array("a", U8, 3, b"123"),
            array("b", STRING, 3, 3 * text("b")),
            array("tokenizer.ggml.tokens", STRING, 3, 3 * text("t")),
            array("c", STRING, 2, 2 * text("c")),
            array("d", U8, 1, b"1"),
        ]
    )
    metadata = read_bytes(tmp_path, header(num_values=5, rest=rest)).metadata
    kept = {key: it.values for key, it in metadata.items() if isinstance(it, Array)}
    assert kept == {"a": (49, 50, 51), "b": None, "tokenizer.ggml.tokens": None, "c": ("c", "c"), "d": None}


@pytest.mark.parametrize("key", ["tokenizer.ggml.tokens", "x"], ids=["kept", "passed over"])
@pytest.mark.parametrize("num_lost", [1, 5, 12, 2000])
def test_file_that_becomes_shorter_while_its_texts_are_read_is_refused(key: str, num_lost: int) -> None:
    count = gguf_header.MAX_KEPT + 1
    data = struct.pack("<IQ", STRING, count) + count * text("four")
    changing = Header(BytesIO(data[:-num_lost]), len(data), "some.gguf")
    with pytest.raises(ModelLoadError, match=r"^some.gguf: expected \d+ bytes as when it was opened, got fewer"):
        changing.value(ARRAY, key)


@pytest.mark.parametrize("seed", range(400))
def test_damaged_header_is_read_or_refused_in_one_line(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    data = bytearray(write_gguf(tmp_path / "m.gguf").read_bytes())
    for _ in range(rng.randint(1, 4)):
        data[rng.randrange(len(data) - 500)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, 0x1B, rng.randrange(256)))
    assert said_by_inspect(tmp_path, bytes(data)).isprintable()


BIG = 2**60
HOSTILE = {
    "tensors": (header(num_tensors=BIG), f"at most 100000 tensors, got {BIG}"),
    "values": (header(num_values=BIG), f"at most 100000 values, got {BIG}"),
    "long key": (header(num_values=1, rest=struct.pack("<Q", BIG)), f"expected {BIG} more bytes of header at byte 32"),
    "long text": (
        header(num_values=1, rest=value("k", STRING, struct.pack("<Q", BIG))),
        f"expected {BIG} more bytes of header",
    ),
    "array of numbers": (
        header(num_values=1, rest=value("k", ARRAY, struct.pack("<IQ", U32, BIG))),
        f"expected {4 * BIG} more bytes",
    ),
    "array of texts": (
        header(num_values=1, rest=value("k", ARRAY, struct.pack("<IQ", STRING, BIG))),
        f"expected {8 * BIG} more bytes",
    ),
    "array of arrays": (
        header(num_values=1, rest=value("k", ARRAY, struct.pack("<IQ", ARRAY, 1))),
        "expected a value type from 0 to 12 for 'k', got 9",
    ),
    "unknown kind": (header(num_values=1, rest=value("k", 13, b"")), "for 'k', got 13"),
    "key twice": (header(num_values=2, rest=2 * value("k", U8, b"1")), "expected each key once, got 'k' twice"),
    "alignment of 0": (
        header(num_values=1, rest=value("general.alignment", U32, bytes(4))),
        "expected general.alignment to be a power of two, got 0",
    ),
    "alignment of 24": (header(num_values=1, rest=value("general.alignment", U32, struct.pack("<I", 24))), "got 24"),
    "dimensions": (
        header(num_tensors=1, rest=text("t") + struct.pack("<I", 5)),
        "at most 4 dimensions of tensor 't', got 5",
    ),
    "large tensor": (
        header(num_tensors=1, rest=tensor("t", [2**63, 2**63])),
        "for tensor 't', got a file of ",
    ),
    "tensor type": (header(num_tensors=1, rest=tensor("t", [1], kind=999)), "a tensor type that gguf knows for 't'"),
    "row of a block's half": (
        header(num_tensors=1, rest=tensor("t", [16], kind=8)),
        "expected rows of 't' to be a multiple of 32 (Q8_0), got 16",
    ),
    "tensor elsewhere": (header(num_tensors=1, rest=tensor("t", [1], offset=64)), "'t' at offset 0, got 64"),
    "tensor twice": (
        header(num_tensors=2, rest=tensor("t", [0]) + tensor("t", [0])),
        "expected each tensor once, got 't' twice",
    ),
    "no data": (header(num_tensors=1, rest=tensor("t", [8])), "expected a file of 96 bytes, got 57: it is cut off"),
    "empty": (b"", "expected a GGUF file, got an empty one"),
    "text": (b"<html>not found</html>", r"expected a GGUF file, got one that begins with b'<htm'"),
    "version 1": (header(version=1), "expected GGUF version 2 or 3, got version 1"),
    "version 4": (header(version=4), "got version 4"),
    "version 0": (header(version=0), "got version 0"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "expected a little-endian GGUF file, got a big-endian one"),
    "terminal codes": (header(num_values=1, rest=value("\x1b[2J\x9b", 13, b"")), r"for '\x1b[2J\x9b', got 13"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file_is_refused_with_numbers(tmp_path: Path, name: str) -> None:
    data, expected = HOSTILE[name]
    with pytest.raises(ModelLoadError) as refused:
        read_bytes(tmp_path, data)
    assert expected in str(refused.value)
    assert str(refused.value).isprintable()


def test_header_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_header, "MAX_HEADER_BYTES", 1000)
    texts = struct.pack("<IQ", STRING, 200) + 200 * text("")
    with pytest.raises(ModelLoadError, match="expected a header of at most 1000 bytes, got"):
        read_bytes(tmp_path, header(num_values=1, rest=value("k", ARRAY, texts)))


def test_version_2_is_read(tmp_path: Path) -> None:
    file = read_bytes(tmp_path, header(version=2, num_values=1, rest=value("k", BOOL, b"\x01")))
    assert (file.version, file.metadata, file.tensors) == (2, {"k": True}, ())


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path, got in (
        (tmp_path, "expected a GGUF file, got a folder"),
        (pipe, "expected a GGUF file, got something else than a file"),
        (tmp_path / "none.gguf", "cannot be read: No such file or directory"),
        (tmp_path / "a\0b", "cannot be read: embedded null byte"),
    ):
        with pytest.raises(ModelLoadError, match=got):
            read_gguf(path)


def test_without_gguf_the_way_to_install_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(ConfigError, match=r'pip install "pice\[llama\]"'):
        ggml_types.file_type_name(7)


@pytest.mark.parametrize(
    ("number", "name"), [(0, "F32"), (1, "F16"), (7, "Q8_0"), (15, "Q4_K_M"), (1024 + 15, "Q4_K_M"), (500, "type 500")]
)
def test_file_type_has_the_name_people_use(number: int, name: str) -> None:
    assert ggml_types.file_type_name(number) == name
