"""The list of models a server gives -> which one to use and how long its context is."""

from collections.abc import Mapping
from typing import Any

from pice.engine.openai_refusal import Server
from pice.errors import ConfigError, ModelLoadError

Listed = Mapping[str, Mapping[str, Any]]


def listed_models(server: Server, answer: Any) -> Listed:
    """The entries of a `/models` answer by model name, in the server's order.

    Raises:
        ModelLoadError: the answer is no such list.
    """
    try:
        return {str(entry["id"]): entry for entry in answer["data"]}
    except (KeyError, TypeError) as error:
        raise ModelLoadError(
            f"{server.url}/models gave no list of models: base_url must be that of an OpenAI-compatible server, "
            "usually ending in /v1"
        ) from error


def names(server: Server, listed: Listed) -> str:
    """The listed names, for a message."""
    return server.quote(", ".join(listed) or "none")


def choose_model(server: Server, listed: Listed) -> str:
    """The model asked for, or the first listed where none was.

    Raises:
        ModelLoadError: the server does not have it.
    """
    model = server.model or next(iter(listed), "")
    if model in listed:
        return model
    raise ModelLoadError(
        f"{server.url} has no model {model!r}; it lists: {names(server, listed)}. Set the engine's model to one of them"
    )


def choose_context(server: Server, entry: Mapping[str, Any], wanted_tokens: int | None) -> int:
    """The context in tokens: `wanted_tokens`, else what vLLM (`max_model_len`) or llama-server (`meta.n_ctx`) says.

    Raises:
        ConfigError: neither is known, or more is wanted than the server has.
    """
    server_tokens = int(entry.get("max_model_len") or (entry.get("meta") or {}).get("n_ctx") or 0)
    if not (wanted_tokens or server_tokens):
        raise ConfigError(f"{server.url} does not say how long the context of {entry['id']} is: set context_tokens")
    if wanted_tokens and server_tokens and wanted_tokens > server_tokens:
        raise ConfigError(
            f"context_tokens is {wanted_tokens}, but {server.url} serves {entry['id']} with {server_tokens}: "
            "set it to at most that, or leave it out"
        )
    return wanted_tokens or server_tokens
