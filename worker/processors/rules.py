r"""rules: regular expressions and keywords from the configuration; typed fields out, labels, and effects for what matches.

[pipelines.news.options]
text = "text"                                  # field of the payload that is read; dots go deeper
[[pipelines.news.options.fields]]
name = "price"
pattern = '(\\d+(?:[.,]\\d+)?) ?EUR'
type = "number"
[[pipelines.news.options.labels]]
name = "sale"
any = ["sale", "discount"]
[[pipelines.news.options.effects]]
kind = "broadcast"
when = "sale"
text = "{source}: {text}"
"""

from __future__ import annotations

import datetime as dt
import functools
import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from worker.core.context import Context
from worker.core.models import Done, Effect, Record, Skip
from worker.processors import processor


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FieldRule(_Strict):
    """The first match of `pattern` (its first group, where it has one) as a value of `type`; `many`: all matches as a list."""

    name: str
    pattern: str
    type: Literal["text", "integer", "number", "boolean", "date"] = "text"
    many: bool = False
    required: bool = False

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return pattern


class LabelRule(_Strict):
    """The label holds when one of `any`, all of `all` and none of `none` occur as words, in any case."""

    name: str
    any: tuple[str, ...] = ()
    all: tuple[str, ...] = ()
    none: tuple[str, ...] = ()


class EffectRule(_Strict):
    """An effect for records with label `when` (none: for all with a field or label). `text` may name {source}, {external_id}, {text} and fields."""

    kind: str
    when: str | None = None
    target: str = ""
    text: str = "{text}"


class RulesOptions(_Strict):
    """What to look for."""

    text: str = "text"
    fields: tuple[FieldRule, ...] = ()
    labels: tuple[LabelRule, ...] = ()
    effects: tuple[EffectRule, ...] = ()
    keep_empty: bool = Field(False, description="a record without any finding is `ok` with empty output instead of skipped")

    @model_validator(mode="after")
    def _known(self) -> RulesOptions:
        labels = {label.name for label in self.labels}
        for effect in self.effects:
            if effect.when is not None and effect.when not in labels:
                raise ValueError(f"effect {effect.kind!r}: there is no label {effect.when!r}")
        return self


@functools.lru_cache(maxsize=1024)
def _word(phrase: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(phrase)}(?!\w)", re.IGNORECASE)


@functools.lru_cache(maxsize=1024)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


def text_of(payload: Any, path: str) -> str:
    """The text at a dotted path; lists of parts (Telegram's formatted texts) are joined."""
    value = payload
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    if isinstance(value, list):
        return "".join(part if isinstance(part, str) else str(part.get("text", "")) for part in value if isinstance(part, (str, dict)))
    return value if isinstance(value, str) else "" if value is None else str(value)


def typed(text: str, kind: str) -> Any:
    """The value of a match; None where it is not of that type."""
    try:
        match kind:
            case "integer":
                return int(text.replace(" ", ""))
            case "number":
                return float(text.replace(" ", "").replace(",", "."))
            case "boolean":
                return text.strip().lower() in ("1", "true", "yes", "on")
            case "date":
                return dt.date.fromisoformat(text.strip()).isoformat()
    except ValueError:
        return None
    return text


def _field(rule: FieldRule, text: str) -> Any:
    found = (typed(m[1] if m.re.groups else m[0], rule.type) for m in _compiled(rule.pattern).finditer(text))
    values = (v for v in found if v is not None)
    return list(values) if rule.many else next(values, None)


def _holds(rule: LabelRule, text: str) -> bool:
    some = not rule.any or any(_word(w).search(text) for w in rule.any)
    return some and all(_word(w).search(text) for w in rule.all) and not any(_word(w).search(text) for w in rule.none)


def _effects(options: RulesOptions, record: Record, text: str, fields: dict[str, Any], labels: list[str]) -> list[Effect]:
    values = {"source": record.source, "external_id": record.external_id, "text": text, **{f.name: "" for f in options.fields}, **fields}
    return [
        Effect(rule.kind, {"text": rule.text.format(**values), "labels": labels, "fields": fields}, rule.target)
        for rule in options.effects
        if rule.when is None or rule.when in labels
    ]


@processor("rules", version=None, slice_size=200, executor="inline", options=RulesOptions, code="rules/1")
def rules(record: Record, ctx: Context) -> Done | Skip:
    options: RulesOptions = ctx.options
    if record.op == "delete":
        return Skip("deleted at the source")
    text = text_of(record.payload, options.text)
    fields = {rule.name: value for rule in options.fields if (value := _field(rule, text)) not in (None, [])}
    labels = [rule.name for rule in options.labels if _holds(rule, text)]
    if not fields and not labels and not options.keep_empty:
        return Skip("nothing matched")
    missing = [rule.name for rule in options.fields if rule.required and rule.name not in fields]
    wanted = len(options.fields) or 1
    return Done(
        {"fields": fields, "labels": labels},
        confidence=round(1 - len(missing) / wanted, 3),
        needs_review=bool(missing),
        effects=_effects(options, record, text, fields, labels),
        meta={"missing": missing} if missing else None,
    )
