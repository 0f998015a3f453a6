"""A request as it happens, for a terminal: events in, something rich can draw out."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from pice.core import Answer, Event, Plan

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
TILE_WIDTH = 38
TILE_LINES = 3
OUTLINE_LINES = 8


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

    def panel(self, number: int, console: Console, width: int) -> Panel:
        chosen = self.confidence is not None
        state = f"confidence {self.confidence:.2f}" if chosen else "writing" if self.text else "waiting"
        return Panel(
            _tail(self.text, console, width - 4, TILE_LINES),
            title=Text(printable(" · ".join(filter(None, (str(number), self.site, self.model))))),
            subtitle=state,
            border_style="green" if chosen else "dim",
            width=width,
            height=TILE_LINES + 2,
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
        yield Group(*self._parts(console, options.max_width))

    def _parts(self, console: Console, width: int) -> Iterator[RenderableType]:
        yield Text(printable(plan_line(self.plan)) if self.plan else "planning", style="bold")
        if self.sketch:
            yield Panel(_tail(self.sketch, console, width - 4, OUTLINE_LINES), title="sketch", title_align="left")
        if self.tiles:
            yield self._grid(console, width)
        if self.answer:
            yield _tail(self.answer, console, width, OUTLINE_LINES)

    def _grid(self, console: Console, width: int) -> Table:
        columns = max(1, min(len(self.tiles), width // TILE_WIDTH))
        panels = [tile.panel(index + 1, console, width // columns) for index, tile in sorted(self.tiles.items())]
        grid = Table.grid()
        for start in range(0, len(panels), columns):
            grid.add_row(*panels[start : start + columns])
        return grid


def _tail(text: str, console: Console, width: int, num_lines: int) -> Text:
    """The last lines of `text` as they wrap at `width`."""
    lines = Text(printable(text).rstrip()).wrap(console, max(width, 1))
    return Text("\n").join(lines[-num_lines:])
