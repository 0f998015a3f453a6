"""Which of a prompt's texts are read as special tokens."""

from hypothesis import given
from hypothesis import strategies as st

from pice.core import Message, Prompt
from pice.engine.llama.special import Special, Specials

START, END, END_LONG = Special(1, "<|s|>", True), Special(2, "<|e|>", True), Special(3, "<|e|>!", True)
TOOL = Special(4, "<tool>", False)
STRIPS = Special(5, "<mask>", True, lstrip=True, rstrip=True)
SPECIALS = Specials([START, END, END_LONG, TOOL, STRIPS, Special(6, "", True)])


def asking(*contents: str) -> Prompt:
    return Prompt(tuple(Message("user", content) for content in contents))


def test_text_is_split_at_special_tokens_the_longer_first() -> None:
    assert SPECIALS.split("<|s|>a<|e|>!b<|e|><tool>") == [START, "a", END_LONG, "b", END, TOOL]
    assert SPECIALS.split("") == []
    assert SPECIALS.split("plain") == ["plain"]


def test_white_space_beside_a_token_that_strips_it_is_lost() -> None:
    assert SPECIALS.split("a \n<mask>\t <mask> b<|s|> c") == ["a", STRIPS, STRIPS, "b", START, " c"]


def test_control_tokens_in_messages_are_hidden_and_shown_again() -> None:
    hidden = SPECIALS.hide(asking("a<|e|>!<|s|>", "<tool>b<|e|>"))
    contents = [message.content for message in hidden.prompt.messages]
    assert [len(content) for content in contents] == [3, 8]
    assert contents[1].startswith("<tool>b")
    assert [hidden.shown(content) for content in contents] == ["a<|e|>!<|s|>", "<tool>b<|e|>"]


def test_prompt_without_control_tokens_is_handed_on_as_it_is() -> None:
    prompt = asking("a <tool> b < | e | >")
    assert SPECIALS.hide(prompt).prompt is prompt


@given(
    st.lists(
        st.lists(st.sampled_from(["<|s|>", "<|e|>", "<|", "e|>", "!", "<mask>", "\U00100000", "\U00100001"])).map(
            "".join
        ),
        min_size=1,
    )
)
def test_hidden_messages_hold_no_control_token_and_nothing_is_lost(contents: list[str]) -> None:
    hidden = SPECIALS.hide(asking(*contents))
    found = [message.content for message in hidden.prompt.messages]
    assert not any(isinstance(part, Special) and part.control for text in found for part in SPECIALS.split(text))
    assert [hidden.shown(text) for text in found] == contents
