"""`pice dead`: messages that were put aside because nobody could use them."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer

from pice.app.admin import list_dead, read_dead, replay_dead
from pice.cli.options import ConfigOption, SetOption
from pice.config import load_settings
from pice.errors import DecodeError
from pice.loop import run_once
from pice.message.codec import as_plain, decode

if TYPE_CHECKING:
    from pice.app.admin import DeadMessage

HEAD_BYTES = 256

IdArgument = Annotated[str, typer.Argument(metavar="ID", help="As `pice dead list` shows it: 0:17.")]

commands = typer.Typer(no_args_is_help=True, help="List, show and replay messages that were put aside.")


@commands.command("list")
def list_messages(
    config: ConfigOption = None,
    override: SetOption = None,
    topic: Annotated[
        str | None, typer.Option("--topic", metavar="T", help="Only those that came from there: pice.requests.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, metavar="N", help="The newest N.")] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="Print them as JSON, without their payload.")] = False,
) -> None:
    """List the newest messages that were put aside, and why."""
    settings = load_settings(config, override or ())
    messages = run_once(lambda: list_dead(settings, limit, topic))
    if as_json:
        typer.echo(orjson.dumps([_facts(it) for it in messages], option=orjson.OPT_INDENT_2))
        return
    for message in messages:
        typer.echo(_line(message))


@commands.command()
def show(dead_id: IdArgument, config: ConfigOption = None, override: SetOption = None) -> None:
    """Show one message: its headers, and what it says; of what cannot be decoded the first bytes."""
    settings = load_settings(config, override or ())
    message = run_once(lambda: read_dead(settings, dead_id))
    typer.echo("\n".join(_shown(message)))


@commands.command()
def replay(dead_id: IdArgument, config: ConfigOption = None, override: SetOption = None) -> None:
    """Publish a message again, to the topic and partition it came from, once."""
    settings = load_settings(config, override or ())
    message = run_once(lambda: replay_dead(settings, dead_id))
    typer.echo(f"{dead_id}: published again to {message.topic}, partition {message.partition}")


def _line(message: "DeadMessage") -> str:
    facts = _facts(message)
    again = " (replayed)" if message.replayed else ""
    return (
        f"{message.dead_id}  {facts['stored']}  {facts['topic']} {message.partition}/{message.position}  "
        f"{message.num_bytes} bytes  {facts['reason']}{again}"
    )


def _facts(message: "DeadMessage") -> dict[str, Any]:
    return {
        "id": message.dead_id,
        "stored": datetime.fromtimestamp(message.stored_s, UTC).isoformat(timespec="milliseconds"),
        "topic": _printable(message.topic),
        "partition": message.partition,
        "position": message.position,
        "key": _printable(message.key),
        "reason": _printable(message.reason),
        "num_bytes": message.num_bytes,
        "is_whole": not message.cut,
        "replayed": message.replayed,
        "headers": {_printable(name): _text_or_hex(value) for name, value in message.headers.items()},
    }


def _shown(message: "DeadMessage") -> Iterator[str]:
    for name, value in _facts(message).items():
        if name != "headers":
            yield f"{name}: {value}"
    for name, value in message.headers.items():
        yield f"header {_printable(name)}: {_text_or_hex(value)}"
    yield "payload:"
    yield _payload(message.payload)


def _payload(payload: bytes) -> str:
    """What it says, as JSON; else why it says nothing, and its head."""
    try:
        plain = as_plain(decode(payload))
    except DecodeError as error:
        head = payload[:HEAD_BYTES].hex(" ")
        return f"{_printable(str(error))}\n{head}{' ...' if len(payload) > HEAD_BYTES else ''}"
    lines = orjson.dumps(plain, option=orjson.OPT_INDENT_2).decode().split("\n")
    return "\n".join(map(_printable, lines))


def _text_or_hex(value: bytes) -> str:
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return value.hex(" ")
    return _printable(text)


def _printable(text: str) -> str:
    """What a terminal may be shown: others wrote it."""
    return "".join(it if it.isprintable() else it.encode("unicode_escape").decode() for it in text)
