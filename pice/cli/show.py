"""A request as it happens, for a terminal: events in, something rich can draw out."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.containers import Lines
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from pice.core import Answer, Event, Plan

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
TILE_WIDTH = 38
LAYOUTS = ((3, 8), (3, 4), (2, 4), (1, 4), (1, 2), (0, 4), (0, 2), (0, 1), (0, 0))
"""Lines of text shown of each segment (0: its title alone), and of the sketch and of the answer. The first that fits
the terminal is taken."""


def printable(text: str) -> str:
    """`text` without control characters: what a model writes must not steer the terminal."""
    return _CONTROL.sub("", text.replace("\t", " "))


def plan_line(plan: Plan) -> str:
    """The decision, its reason and the times it was based on."""
    times = {"cloud": plan.t_cloud_s, "progressive": plan.t_progressive_s, "edge": plan.t_edge_s}
    predicted = ", ".join(f"{mode} {time_s:.1f} s" for mode, time_s in times.items() if time_s > 0)
    return f"{plan.mode}: {plan.reason}" + (f" (predicted: {predicted})" if predicted else "")


def figures(answer: Answer) -> str:
    """One line: when things came, what they cost and where they ran."""
    return " · ".join(_figures(answer))


def _figures(answer: Answer) -> Iterator[str]:
    times, usage = answer.times, answer.usage
    yield answer.mode
    yield f"first text {times.ttft_s:.2f} s"
    yield f"whole answer {times.e2e_s:.2f} s"
    if answer.sketch:
        yield f"sketch {times.sketch_s:.2f} s"
    yield f"cloud {usage.num_cloud_output_tokens} tokens"
    if usage.num_edge_output_tokens:
        lost = f" ({usage.num_discarded_tokens} discarded)" if usage.num_discarded_tokens else ""
        yield f"edge {usage.num_edge_output_tokens} tokens{lost}"
    if sites := sorted({span.site for span in answer.spans if span.site}):
        yield ", ".join(sites)
    if answer.degraded:
        yield "degraded: segment " + ", ".join(str(index + 1) for index in answer.degraded)
    if answer.finish_reason == "length":
        yield "stopped by its token limit"


@dataclass(slots=True)
class Tile:
    """What is shown of one segment."""

    site: str = ""
    model: str = ""
    confidence: float | None = None
    texts: dict[tuple[str, str], str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        return self.texts.get((self.site, self.model), "")

    def shown(self, number: int, console: Console, width: int, num_lines: int) -> Panel | Text:
        """The last `num_lines` of its text in a frame; 0 leaves one line that names it and says how far it is."""
        chosen = self.confidence is not None
        state = f"confidence {self.confidence:.2f}" if chosen else "writing" if self.text else "waiting"
        style = "green" if chosen else "dim"
        title = printable(" · ".join(filter(None, (str(number), self.site, self.model))))
        if not num_lines:
            line = Text(f"{title} · {state}", style=style)
            line.truncate(max(1, width - 1), overflow="ellipsis")
            line.pad_right(1)
            return line
        return Panel(
            _block(_wrapped(self.text, console, width - 4), num_lines),
            title=Text(title),
            subtitle=state,
            border_style=style,
            width=width,
            height=num_lines + 2,
        )


class Screen:
    """The state of one request as its events tell it, drawn on demand.

    A later attempt voids what an earlier one showed; events of an earlier one are passed over.
    """

    def __init__(self) -> None:
        self.attempt = 0
        self._clear()

    def _clear(self) -> None:
        self.plan: Plan | None = None
        self.sketch = ""
        self.answer = ""
        self.tiles: dict[int, Tile] = {}

    def feed(self, event: Event) -> None:
        if event.attempt < self.attempt:
            return
        if event.attempt > self.attempt:
            self.attempt = event.attempt
            self._clear()
        match event.kind:
            case "planned":
                self.plan = event.plan
            case "sketch_text":
                self.sketch += event.text
            case "answer_text":
                self.answer += event.text
            case "segment_released" | "segment_text" | "segment_chosen":
                self._feed_tile(self.tiles.setdefault(event.index, Tile()), event)
            case "answered" | "failed":
                pass

    def _feed_tile(self, tile: Tile, event: Event) -> None:
        writer = (event.site, event.model)
        if event.kind == "segment_text":
            tile.texts[writer] = tile.texts.get(writer, "") + event.text
        if event.kind == "segment_chosen":
            tile.confidence = event.confidence
            tile.texts.setdefault(writer, event.text)
        if event.kind == "segment_chosen" or tile.confidence is None:
            tile.site, tile.model = writer

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Group(*self._parts(console, options.max_width, options.max_height))

    def _parts(self, console: Console, width: int, height: int) -> Iterator[RenderableType]:
        """What to draw, in at most `height` lines if every segment can have one of them."""
        plan = _wrapped(plan_line(self.plan) if self.plan else "planning", console, width)
        head = Lines(plan[: max(1, height // 4)])
        sketch = _wrapped(self.sketch, console, width - 4) if self.sketch else Lines()
        answer = _wrapped(self.answer, console, width) if self.answer else Lines()
        room = max(1, height - len(head))
        columns, tile_lines, text_lines = self._layout(width, room, len(sketch), len(answer))
        yield _block(head, len(head), style="bold")
        if sketch and text_lines:
            yield Panel(_block(sketch, text_lines), title="sketch", title_align="left")
        if self.tiles:
            yield self._grid(console, width, columns, tile_lines)
        if answer:
            yield _block(answer, max(1, text_lines))

    def _layout(self, width: int, room: int, num_sketch: int, num_answer: int) -> tuple[int, int, int]:
        """How many segments stand side by side, and the first of `LAYOUTS` for which `room` lines are enough."""
        columns = max(1, min(len(self.tiles), width // TILE_WIDTH))
        rows = -(-len(self.tiles) // columns)
        for tile_lines, text_lines in LAYOUTS:
            framed = min(num_sketch, text_lines) + 2 if num_sketch and text_lines else 0
            tiles = rows * (tile_lines + 2 if tile_lines else 1)
            if framed + tiles + min(num_answer, max(1, text_lines)) <= room:
                return columns, tile_lines, text_lines
        room_of_tiles = max(1, room - min(num_answer, 1))
        return max(columns, -(-len(self.tiles) // room_of_tiles)), 0, 0

    def _grid(self, console: Console, width: int, columns: int, num_lines: int) -> Table:
        each = max(1, width // columns)
        shown = [tile.shown(index + 1, console, each, num_lines) for index, tile in sorted(self.tiles.items())]
        grid = Table.grid()
        for start in range(0, len(shown), columns):
            grid.add_row(*shown[start : start + columns])
        return grid


def _wrapped(text: str, console: Console, width: int) -> Lines:
    return Text(printable(text).rstrip()).wrap(console, max(width, 1))


def _block(lines: Lines, most: int, style: str = "") -> Text:
    """The last of the lines."""
    return Text("\n", style=style).join(lines[-most:])
