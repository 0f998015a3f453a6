"""Text from anywhere -> text that a line of a log or a JSON body can hold."""

MAX_CHARS = 8192


def printable(text: str, *, kept: str = "") -> str:
    """The text without anything that moves a cursor, ends a line or is no character: such are written as escapes, but
    for those in `kept`. What is longer than 8192 characters is cut."""
    if len(text) > MAX_CHARS:
        text = f"{text[:MAX_CHARS]}... ({len(text)} characters)"
    if text.isprintable():
        return text
    return "".join(it if it.isprintable() or it in kept else _escaped(it) for it in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()
