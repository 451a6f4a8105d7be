"""What the configuration says of each source, pipeline and effect, and the types that its values have."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from worker.core.times import parse_seconds


def listed(value: Any) -> Any:
    """A comma list or a JSON array as a list. Raises ValueError."""
    if not isinstance(value, str):
        return value
    if not value.strip().startswith("["):
        return [part.strip() for part in value.split(",") if part.strip()]
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"this begins like a JSON array and is none: {error}") from None


Seconds = Annotated[float, BeforeValidator(parse_seconds), Field(ge=0, le=100 * 366 * 86400)]  # a hundred years: sums with times stay times
Names = Annotated[list[str], BeforeValidator(listed)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SourceSpec(BaseModel):
    """`[sources.NAME]`; further keys belong to the kind and are checked by it."""

    model_config = ConfigDict(extra="allow", frozen=True)
    kind: str = Field(description="files, webhook, ...")
    active: bool = Field(True, description="off: configured, but not read")
    every: Seconds | None = Field(None, gt=0, description="how often a source that has to be asked is asked; one process at a time does")
    silence: Seconds | None = Field(None, description="expected silence: longer without news counts as lag")


class VariantSpec(Section):
    """`[pipelines.NAME.variants.VERSION]`: what differs from the pipeline; `options` are merged into its options."""

    processor: str | None = Field(None, description="another processor")
    promote: Literal["manual", "shadow"] = Field("manual", description="a candidate that works only on what is replayed, or a shadow beside live")
    model: str | None = Field(None, description="another model")
    prompt: str | None = Field(None, description="another prompt")
    prompt_file: str | None = Field(None, description="another prompt, in a file")
    slice_size: int | None = Field(None, ge=1, le=100000, description="records per job")
    concurrency: int | None = Field(None, ge=1, description="records (or batches) processed at once")
    options: dict[str, Any] = Field(default_factory=dict, description="options that differ")

    @model_validator(mode="after")
    def _one_prompt(self) -> VariantSpec:
        return _one_prompt(self)


Share = Annotated[float, Field(ge=0)]
Margin = Annotated[float, Field(gt=0, lt=1)]


class GateSpec(Section):
    """`[pipelines.NAME.gate]`: what a version has to show beside the live one before `tailrace promote` lets it speak."""

    fields: dict[str, Margin] = Field(
        default_factory=dict,
        description="by field of the output: how much less often than live it may be right, e.g. 0.02; truth: reviews or `gold`",
    )
    gold: str | None = Field(None, description="file with the right answers, beside the configuration; without it the reviews are the truth")
    alpha: float = Field(0.05, gt=0, lt=0.5, description="how often a version that is worse by a whole margin may pass a field's check")
    min_records: int = Field(100, ge=1, description="fewer records that both versions have done are not enough evidence")
    most_new_effects: Share | None = Field(None, description="effects that only it wishes, at most, as a share of live's effects")
    most_lost_effects: Share | None = Field(None, description="effects of live that it does not wish, at most, as a share of them")
    most_changed_effects: Share | None = Field(None, description="effects that it wishes with another body, at most, as a share of live's")
    most_cost: float | None = Field(None, gt=0, description="its cost per record, at most, as a ratio to live's: 1.5 is half as much again")
    zero_tolerance: str | None = Field(None, description="name of a frozen set of records of which none may differ from live, or be wrong")
    zero_tolerance_fields: Names = Field(default_factory=list, description="fields of the output that count for it; none named: the whole output")

    @model_validator(mode="after")
    def _asks_something(self) -> GateSpec:
        asked = (self.most_new_effects, self.most_lost_effects, self.most_changed_effects, self.most_cost, self.zero_tolerance)
        if not self.fields and all(limit is None for limit in asked):
            raise ValueError("a gate without a check lets everything through: give it fields, most_..., or zero_tolerance")
        return self


Prompted = TypeVar("Prompted", "PipelineSpec", VariantSpec)


def _one_prompt(spec: Prompted) -> Prompted:
    if spec.prompt is not None and spec.prompt_file is not None:
        raise ValueError("prompt and prompt_file are both given: which one is meant?")
    return spec


class PipelineSpec(Section):
    """`[pipelines.NAME]`."""

    processor: str = Field(description="a processor in the box (rules, echo), `package.module`, `package.module:name` or a `.py` file")
    version: str | None = Field(None, description="name of the version; left out, it is derived from the fingerprint")
    sources: Names = Field(default_factory=lambda: ["*"], description="source names or globs that this pipeline wants")
    promote: Literal["on_start", "manual", "shadow"] = Field(
        "on_start",
        description="a new version, when a worker starts with it: live at once, a candidate until `tailrace promote`, or a shadow beside live",
    )
    model: str | None = Field(None, description="name of the model that the processor asks; part of the version")
    prompt: str | None = Field(None, description="text of the prompt; part of the version")
    prompt_file: str | None = Field(None, description="file with the text of the prompt, beside the configuration")
    slice_size: int | None = Field(None, ge=1, le=100000, description="records per job; default: what the processor says")
    concurrency: int | None = Field(None, ge=1, description="records (or batches) processed at once; default: what the processor says")
    deadline: Seconds | None = Field(None, gt=0, description="longest time for one record or batch; default: what the processor says")
    max_attempts: int = Field(8, ge=1, description="quick attempts, with growing pauses")
    retry_base: Seconds = Field(1.0, description="first pause between attempts; doubles each time")
    retry_after: Seconds = Field(14400.0, description="pause between attempts after the quick ones are used up")
    retry_rounds: int = Field(3, ge=0, description="how many of these slow attempts before the record waits for `tailrace retry`")
    options: dict[str, Any] = Field(default_factory=dict, description="passed to the processor, which checks them")

    gate: GateSpec | None = Field(
        None, description="what `tailrace promote` asks of a new version; with a gate, `promote` is manual by default; none: it only counts"
    )
    variants: dict[str, VariantSpec] = Field(default_factory=dict, description="further versions that run beside it, by name")

    @model_validator(mode="before")
    @classmethod
    def _ask_the_gate(cls, given: Any) -> Any:
        """Only `tailrace promote` asks a gate, so no new version goes live by itself where there is one."""
        if isinstance(given, dict) and given.get("gate"):
            given = {"promote": "manual"} | given
            if given["promote"] == "on_start":
                raise ValueError('promote = "on_start" goes around the gate: write "manual" or "shadow", or leave it out')
        return given

    @model_validator(mode="after")
    def _one_prompt(self) -> PipelineSpec:
        return _one_prompt(self)

    def with_variant(self, name: str) -> PipelineSpec:
        """What this pipeline is as one of its variants."""
        given = self.variants[name].model_dump(exclude_unset=True)
        if "prompt" in given or "prompt_file" in given:
            given = {"prompt": None, "prompt_file": None} | given
        options = {"options": self.options | given.pop("options")} if "options" in given else {}
        return self.model_copy(update={"variants": {}, "version": name, "promote": "manual"} | given | options)


class EffectSpec(BaseModel):
    """`[effects.KIND]`; further keys belong to the sink and are checked by it."""

    model_config = ConfigDict(extra="allow", frozen=True)
    open: bool = Field(False, description="the gate; set it by TAILRACE_EFFECTS__KIND=1")
    sink: str = Field(description="jsonl, webhook, telegram or github_issue")
    policy: Literal["never_twice", "never_lost"] | None = Field(
        None, description="who decides when an outcome cannot be known; default: what the sink can"
    )
    rate: float | None = Field(None, gt=0, description="most deliveries a second, all processes together")
    max_age: Seconds | None = Field(None, description="older records (by occurred_at) release nothing")
    on_change: Literal["report", "edit"] = Field(
        "report", description="what was sent and is wished with another body: only reported, or changed at the receiver where the sink can"
    )
    hold: Seconds = Field(0.0, description="a delivery waits this long, so that it can be cancelled")
    max_attempts: int = Field(8, ge=1, description="tries before a delivery is given up as failed")
