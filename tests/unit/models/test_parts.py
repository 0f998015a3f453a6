"""Models that were split into several files."""

from pathlib import Path

import pytest

from pice.errors import ModelLoadError
from pice.models.figures import Figures
from pice.models.lines import lines
from pice.models.memory import estimate
from pice.models.parts import part_names, read_model
from pice.models.summary import summarise
from tests.unit.models.made import HEAD, write_gguf


def write_split(folder: Path, count: int = 3) -> list[Path]:
    paths = [folder / f"m-{number:05}-of-{count:05}.gguf" for number in range(1, count + 1)]
    for number, path in enumerate(paths):
        metadata = {**(HEAD if number == 0 else {}), "split.no": number, "split.count": count}
        write_gguf(path, metadata, {f"t{number}": (number + 1, 32)})
    return paths


@pytest.mark.parametrize("given", [0, 2])
def test_all_parts_beside_one_are_summed(tmp_path: Path, given: int) -> None:
    paths = write_split(tmp_path)
    files = read_model(paths[given])
    found = summarise(files)
    assert (found.num_parts, found.missing_parts, found.num_layers) == (3, (), 2)
    assert found.num_parameters == (1 + 2 + 3) * 32
    assert found.size_bytes == sum(path.stat().st_size for path in paths)


def test_missing_parts_are_named(tmp_path: Path) -> None:
    paths = write_split(tmp_path, 8)
    for path in paths[1:7]:
        path.unlink()
    files = read_model(paths[0])
    assert files.missing == tuple(path.name for path in paths[1:7])
    memory = estimate(Figures(paths[0], files.first.metadata), 0, num_shared_tokens=0, num_own_tokens=1, sequences=(1,))
    (said,) = [line for line in lines(summarise(files), memory) if line.startswith("parts")]
    assert "2 of 8 there, and only they are counted below; missing: m-00002-of-00008.gguf, " in said
    assert said.endswith("m-00006-of-00008.gguf, ...")


def test_without_the_first_part_it_is_refused(tmp_path: Path) -> None:
    paths = write_split(tmp_path)
    paths[0].unlink()
    with pytest.raises(ModelLoadError, match=r"expected the first part beside it, got no m-00001-of-00003\.gguf"):
        read_model(paths[1])


def test_part_under_another_name_is_refused(tmp_path: Path) -> None:
    renamed = write_split(tmp_path)[0].rename(tmp_path / "m.gguf")
    with pytest.raises(ModelLoadError, match=r"expected a name that ends in -00001-of-00003\.gguf"):
        read_model(renamed)


def test_part_in_anothers_place_is_refused(tmp_path: Path) -> None:
    paths = write_split(tmp_path)
    paths[1].write_bytes(paths[2].read_bytes())
    with pytest.raises(ModelLoadError, match=r"m-00002-of-00003\.gguf: expected split.no 1 and .*, got 2 and 3"):
        read_model(paths[0])


def test_damaged_part_is_named(tmp_path: Path) -> None:
    paths = write_split(tmp_path)
    paths[2].write_bytes(paths[2].read_bytes()[:-60])
    with pytest.raises(ModelLoadError, match=r"m-00003-of-00003\.gguf: expected a file of"):
        read_model(paths[0])


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("m.gguf", 1),
        ("q4/m-00002-of-00003.gguf", 3),
        ("m-00004-of-00003.gguf", 1),
        ("m-00000-of-00003.gguf", 1),
        ("m-2-of-3.gguf", 1),
        ("m-00001-of-00001.gguf", 1),
    ],
)
def test_names_of_the_parts_follow_from_one(name: str, count: int) -> None:
    names = part_names(name)
    assert len(names) == count
    assert name in names
