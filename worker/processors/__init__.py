"""The registry: a processor is one file and one registration."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel

Kind = Literal["inline", "threads", "processes"]


@dataclass(frozen=True, slots=True)
class Processor:
    """A registered function and how it wants to be run; the configuration may override the numbers."""

    name: str
    function: Callable[..., Any]
    version: str | None = None
    slice_size: int = 1
    batch: bool = False
    concurrency: int | None = None
    deadline: float = 600.0
    executor: Kind | concurrent.futures.Executor | None = None
    options: type[BaseModel] | None = None
    fingerprint: tuple[str, ...] = ()
    code: str | None = None
    output: type[BaseModel] | None = None
    inputs: tuple[str, ...] = ()


_registered: dict[str, Processor] = {}


def processor(
    name: str,
    *,
    version: str | None = None,
    slice_size: int = 1,
    batch: bool = False,
    concurrency: int | None = None,
    deadline: float = 600.0,
    executor: Kind | concurrent.futures.Executor | None = None,
    options: type[BaseModel] | None = None,
    fingerprint: tuple[str, ...] = (),
    code: str | None = None,
    output: type[BaseModel] | None = None,
    inputs: tuple[str, ...] = (),
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers `function(record, ctx)`, or with `batch=True` `function(records, ctx)` returning one outcome per record.

    `version`: its name; left out, it is derived from the fingerprint. `slice_size`: records per job, 1 where one takes long,
    hundreds where it is cheap. `concurrency`: how many run at once (default: 8 for async functions, 1 otherwise).
    `deadline`: seconds for one record or batch. `executor`: inline (default for async), threads (default for plain functions),
    processes, or a concurrent.futures.Executor. `options`: a pydantic model that checks `[pipelines.X.options]`.
    `fingerprint`: further texts, e.g. a prompt, whose change makes a new version. `code`: stands for the module's text in the
    fingerprint, where a change of the text alone is to make no new version. `output`: a pydantic model that every output has to fit;
    it is part of the version. `inputs`: fields of the payload (dots go deeper) that the prompt has to contain: a prompt without the place
    `{name}` is refused at the start, and an `input` of Done in which a field's text does not occur stops the version.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        _registered[name] = Processor(
            name, function, version, slice_size, batch, concurrency, deadline, executor, options, fingerprint, code, output, inputs
        )
        return function

    return register


def registered() -> dict[str, Processor]:
    return dict(_registered)
