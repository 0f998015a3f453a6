"""Which request the running task works for."""

from contextvars import ContextVar

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""Set where a node begins to handle a delivery, "" elsewhere; whoever writes log lines may name it in them."""
