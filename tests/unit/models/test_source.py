"""What names a file on the hub."""

import pytest

from pice.errors import InputError
from pice.models.source import Source, parse_source

RIGHT = {
    "hf:org/repo:model.gguf": Source("org/repo", "model.gguf"),
    "hf:Org-1/re.po_2:q4/model-00001-of-00002.gguf": Source("Org-1/re.po_2", "q4/model-00001-of-00002.gguf"),
    "hf:org/repo:model.gguf@v1.0": Source("org/repo", "model.gguf", "v1.0"),
    "hf:org/repo:model.gguf@refs/pr/3": Source("org/repo", "model.gguf", "refs/pr/3"),
    "hf:org/repo:ä b.gguf": Source("org/repo", "ä b.gguf"),
}
WRONG = [
    "",
    "model.gguf",
    "hf:",
    "hf:org/repo",
    "hf:org/repo:",
    "hf:repo:model.gguf",
    "hf:a/b/c:model.gguf",
    "hf://org/repo/model.gguf",
    "org/repo:model.gguf",
    "HF:org/repo:model.gguf",
    "hf:org/repo:model.gguf@",
    "hf:org/repo:model.gguf@a@b",
    "hf:org/repo:model.gguf@-x",
    "hf:org/repo:/etc/passwd",
    "hf:org/repo:../../x.gguf",
    "hf:org/..:x.gguf",
    "hf:-org/repo:x.gguf",
    "hf:org/repo:a\\b.gguf",
    "hf:org/repo:a\x1b[2J.gguf",
    "hf:org/repo:x.gguf\n",
]


@pytest.mark.parametrize("text", RIGHT)
def test_source_is_repo_file_and_revision(text: str) -> None:
    assert parse_source(text) == RIGHT[text]
    assert str(RIGHT[text]) == text


@pytest.mark.parametrize("text", WRONG)
def test_what_names_no_file_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(InputError, match=r"expected hf:ORG/REPO:FILE or .*@REVISION, as in hf:Qwen/") as refused:
        parse_source(text)
    assert str(refused.value).isprintable()
