"""From what a processor returned or raised to an outcome that can be settled. An exception becomes Retry here and nowhere else."""

from __future__ import annotations

import functools
from typing import Any

from pydantic import ValidationError

from worker.core.models import Done, Fail, Outage, Outcome, Record, Retry, Skip
from worker.registry import Runnable
from worker.settling import clean, unstorable

LONGEST = 2_592_000.0
BRIEF = 1.0  # seconds that what counts no attempt waits at least: nothing else would end asking again at once
LOST = 3600.0  # seconds for which a version rests whose prompt lost its input
DONE = Done()


def checked(value: Any) -> Outcome:
    """The outcome a processor returned, or why it cannot be one."""
    if value is None:
        return DONE
    if isinstance(value, Done) and not bare(value) and (why := unstorable(value)):
        return Retry(why)
    if isinstance(value, Retry):
        counts = value.counts if isinstance(value.counts, bool) else True
        return Retry(words(value.reason), seconds(value.after) if counts else rest(value.after), counts)
    if isinstance(value, (Skip, Fail)):
        return value if isinstance(value.reason, str) else type(value)(words(value.reason))
    if isinstance(value, Done):
        return value
    return Retry(f"the processor returned {type(value).__name__}; return Done, Skip, Retry or Fail")


def bare(value: Any) -> bool:
    """Done, and nothing to say. Without `==`: what was returned may compare as it likes."""
    if type(value) is not Done or any(said is not None for said in (value.output, value.confidence, value.meta, value.input)):
        return False
    return value.needs_review is False and type(value.effects) in (tuple, list) and not value.effects


def failed(error: BaseException) -> Outcome:
    if isinstance(error, Outage):
        return Retry(f"outage: {words(error)}", after=rest(error.seconds), counts=False)
    return Retry(f"{type(error).__name__}: {words(error)}")


def seconds(given: Any) -> float | None:
    """What a processor wishes to wait, at most a month; None where that is no number of seconds."""
    usable = isinstance(given, (int, float)) and given == given  # noqa: PLR0124  NaN is not itself
    return float(min(max(given, 0.0), LONGEST)) if usable else None


def rest(given: Any) -> float | None:
    """The same where no attempt is counted: never less than `BRIEF`."""
    asked = seconds(given)
    return None if asked is None else max(asked, BRIEF)


def words(error: object) -> str:
    """What an error or a reason says of itself, if it can."""
    try:
        return clean(error)
    except Exception as worse:  # noqa: BLE001  an error's own __str__ may be wrong
        return f"(it cannot be shown: {type(worse).__name__})"


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
