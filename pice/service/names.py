"""Names that come from messages -> label values of which there are never too many."""

OTHER = "other"
NONE = "none"
"""Stands for an empty name: a label without a value is no label."""

_MAX_CHARS = 200


class Names:
    """Names that were seen, at most `limit`."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._seen: set[str] = set()

    def seen(self, name: str) -> str:
        """The name, remembered; "other" where there is no more room, or for what is no name."""
        if not name:
            return NONE
        if name not in self._seen and len(self._seen) < self._limit and _is_name(name):
            self._seen.add(name)
        return self.known(name)

    def known(self, name: str) -> str:
        """The name if it was seen, else "other": for what anyone may have written."""
        return name if name in self._seen else OTHER


def _is_name(text: str) -> bool:
    return len(text) <= _MAX_CHARS and text.isprintable()
