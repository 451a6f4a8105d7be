"""From what a processor returned or raised to an outcome that can be settled. An exception becomes Retry here and nowhere else."""

from __future__ import annotations

import functools
from typing import Any

from pydantic import ValidationError

from worker.core.models import Done, Fail, Outage, Outcome, Record, Retry, Skip
from worker.registry import Runnable
from worker.settling import unstorable

LOST = 3600.0  # seconds for which a version rests whose prompt lost its input
DONE = Done()


def checked(value: Any) -> Outcome:
    """The outcome a processor returned, or why it cannot be one."""
    if value is None:
        return DONE
    if isinstance(value, (Done, Skip, Retry, Fail)):
        if isinstance(value, Done) and (value.output is not None or value.effects or value.meta or value.input) and (why := unstorable(value)):
            return Retry(why)
        return value
    return Retry(f"the processor returned {type(value).__name__}; return Done, Skip, Retry or Fail")


def failed(error: BaseException) -> Outcome:
    if isinstance(error, Outage):
        return Retry(f"outage: {error}", after=error.seconds, counts=False)
    return Retry(f"{type(error).__name__}: {error}")


def mismatch(runnable: Runnable, value: Done, record: Record) -> Exception | None:
    """An output that does not fit its schema, or a model that was asked without the record's own text."""
    processor = runnable.processor
    if processor.output is not None and value.output is not None:
        try:
            processor.output.model_validate(value.output)
        except ValidationError as error:
            return ValueError(f"the output does not fit its schema: {error.errors()[0]['loc']} {error.errors()[0]['msg']}")
    for name in processor.inputs if value.input is not None else ():
        text = functools.reduce(lambda v, key: v.get(key) if isinstance(v, dict) else None, name.split("."), record.payload)
        if isinstance(text, str) and text.strip() not in (value.input or ""):
            return Outage(f"the model was asked without the record's {name}: mend the prompt of {runnable.version} as a new version", LOST)
    return None
