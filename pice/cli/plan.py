"""`pice plan`: what would be decided for a question, without answering it."""

from typing import Annotated

import orjson
import typer

from pice.cli.options import ConfigOption, MaxTokensOption, QuestionArgument, SetOption, SystemOption
from pice.cli.session import OK, messages, with_pipeline
from pice.cli.show import plan_line
from pice.config import load_settings
from pice.core import Plan, Sampling
from pice.pipeline import Pipeline


def plan(
    question: QuestionArgument,
    config: ConfigOption = None,
    override: SetOption = None,
    system: SystemOption = "",
    max_tokens: MaxTokensOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the decision as JSON.")] = False,
) -> None:
    """Show how a question would be answered, and the times that decide it."""
    conversation = messages(question, system)
    settings = load_settings(config, override or ())
    sampling = Sampling() if max_tokens is None else Sampling(max_tokens=max_tokens)

    async def body(pipeline: Pipeline) -> int:
        decided = await pipeline.plan(pipeline.new_request(conversation, sampling=sampling))
        typer.echo(orjson.dumps(decided, option=orjson.OPT_INDENT_2) if as_json else "\n".join(lines(decided)))
        return OK

    raise typer.Exit(with_pipeline(settings, body))


def lines(plan: Plan) -> list[str]:
    """The decision, and for a sketch how it would be made."""
    if plan.mode != "progressive":
        return [plan_line(plan)]
    segments = f"up to {plan.max_segments} segments of {plan.segment_words} words or more"
    sketch = f"sketch of up to {plan.sketch_words} words, {segments}, candidates per segment: {plan.candidates}"
    return [plan_line(plan), sketch]
