"""Texts of special tokens, found among thousands."""

from hypothesis import given
from hypothesis import strategies as st

from pice.core import Message, Prompt
from pice.engine.llama.special import Special, Specials

texts = st.text(alphabet="<|ab \n", max_size=30)


@given(st.lists(st.text(alphabet="<|ab \n", min_size=1, max_size=4), max_size=8), texts)
def test_every_special_text_that_occurs_is_found_the_longest_first(known: list[str], text: str) -> None:
    specials = Specials(Special(number, each, control=True) for number, each in enumerate(known))
    found = specials._present(text)
    assert set(found) == {each for each in known if each in text}
    assert [len(each) for each in found] == sorted(map(len, found), reverse=True)


@given(st.lists(st.text(alphabet="<|ab \n", min_size=1, max_size=4), max_size=8), texts)
def test_hidden_texts_are_gone_from_the_messages_and_come_back(known: list[str], text: str) -> None:
    specials = Specials(Special(number, each, control=True) for number, each in enumerate(known))
    hidden = specials.hide(Prompt((Message("user", text),)))
    content = hidden.prompt.messages[0].content
    assert not any(each in content for each in known)
    assert hidden.shown(content) == text
