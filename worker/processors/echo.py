"""echo: the payload as it came. For a first look, and to measure everything but processing."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from worker.core.context import Context
from worker.core.models import Done, Effect, Record, Skip
from worker.processors import processor


class EchoOptions(BaseModel):
    """`effect`: a kind; each record then also asks for one effect of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    effect: str | None = None
    target: str = ""


@processor("echo", version="1", slice_size=500, executor="inline", options=EchoOptions, code="echo/1")
async def echo(record: Record, ctx: Context) -> Done | Skip:
    options: EchoOptions = ctx.options
    if record.op == "delete":
        return Skip("deleted at the source")
    body = record.payload if record.body is None else {"bytes": len(record.body)}
    effects = (Effect(options.effect, {"payload": body}, options.target),) if options.effect else ()
    return Done(body, effects=effects)
