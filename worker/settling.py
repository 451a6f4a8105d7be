"""From outcomes to the columns of one `tailrace.settle` call."""

from __future__ import annotations

import hashlib
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from worker.core.models import Done, Effect, Fail, Record, Retry, Skip
from worker.core.texts import NUL, fit
from worker.jobs import Slice

LONGEST_KEY = 2000  # bytes
_LARGEST = 1e38  # of a confidence, as Postgres keeps it
FIRST, ONE_IN = 20, 256  # inputs whose text is kept


def unstorable(outcome: Done) -> str | None:
    """Why Postgres could not keep this outcome, or None. JSON in Postgres has no NUL character."""
    if why := _misshapen(outcome):
        return f"the outcome's {why}"
    try:
        text = orjson.dumps([outcome.output, dict(outcome.meta or {}), outcome.input, [(e.kind, e.body, e.target, e.key) for e in outcome.effects]])
    except (TypeError, orjson.JSONEncodeError) as error:
        return f"the outcome is not JSON: {error}"
    return "the outcome holds a NUL character" if NUL.search(text) else None


def _misshapen(outcome: Any) -> str | None:
    """What no type checker has seen: a processor may be anybody's."""
    sure, kinds = outcome.confidence, (list, tuple)
    if sure is not None and (not isinstance(sure, numbers.Real) or not abs(float(sure)) < _LARGEST):
        return f"confidence is no number from 0 to 1: {sure!r:.80}"
    if not isinstance(outcome.needs_review, bool):
        return "needs_review is neither True nor False"
    if not isinstance(outcome.meta, (Mapping, type(None))) or not isinstance(outcome.input, (str, type(None))):
        return "meta is no mapping, or its input no text"
    if not isinstance(outcome.effects, kinds) or not all(isinstance(e, Effect) for e in outcome.effects):
        return "effects are no list of Effect"
    texts = [t for e in outcome.effects for t in (e.kind, e.target, "" if e.key is None else e.key)]
    return None if all(isinstance(t, str) for t in texts) else "effects have a kind, target or key that is no text"


def clean(text: object) -> str:
    """A reason as text that Postgres can keep."""
    return fit(text, 4000)


def effect_key(effect: Effect, record: Record) -> str:
    """As the processor named it; one that does not fit into an index is cut, and its digest tells it from others."""
    key = effect.key if effect.key is not None else f"{effect.kind}:{effect.target}:{record.source}:{record.external_id}"
    whole = key.encode()
    return key if len(whole) <= LONGEST_KEY else f"{key[:200]}#{hashlib.sha256(whole).hexdigest()}"


def _asked(piece: Slice, text: str) -> dict[str, Any]:
    """What a model was asked, for the result's meta: hash and length always, the text of the first ones and then of one in some hundred."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    kept = next(piece.runnable.sampled) < FIRST or int(digest[:4], 16) % ONE_IN == 0
    return {"input_hash": digest[:32], "input_chars": len(text)} | ({"input": text} if kept else {})


@dataclass(slots=True)
class Columns:
    """Parallel arrays, as the SQL function takes them. A result column in which nothing was said stays None."""

    slices: list[Slice]
    counts: list[tuple[int, int, int, int]] = field(default_factory=list)
    nexts: list[int | None] = field(default_factory=list)
    lefts: list[int | None] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    reruns: list[int] = field(default_factory=list)
    said: list[tuple[str, str | None, float | None, bool, str | None, str | None]] = field(default_factory=list)
    bare: bool = True
    retries: list[dict[str, Any]] = field(default_factory=list)
    effects: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Takes what is done and not yet settled of each slice."""
        self.bare = all(piece.bare == len(piece.outcomes) and not piece.rerun for piece in self.slices)
        for piece in self.slices:
            last = len(piece.outcomes)
            if self.bare:
                self.counts.append((last - piece.settled, 0, 0, 0))
            else:
                self.counts.append(self._outcomes(piece, last))
            following = piece.records[last].id if last < len(piece.records) else piece.beyond
            self.nexts.append(following)
            self.lefts.append(None if following is None else piece.n_rows - last)

    def _outcomes(self, piece: Slice, last: int) -> tuple[int, int, int, int]:
        ok, skipped, failed, retried = 0, 0, 0, 0
        for record, outcome in zip(piece.records[piece.settled : last], piece.outcomes[piece.settled :], strict=True):
            match outcome:
                case Done():
                    ok += 1
                    self._done(piece, record, outcome)
                case Skip():
                    skipped += 1
                    self._say(piece, record, "skipped", meta=orjson.dumps({"reason": clean(outcome.reason)}).decode())
                case Fail():
                    failed += 1
                    self._say(piece, record, "failed", error=orjson.dumps([{"kind": "failed", "message": clean(outcome.reason)}]).decode())
                case Retry():
                    retried += 1
                    self._retry(piece, record, outcome)
        return ok, skipped, failed, retried

    def _done(self, piece: Slice, record: Record, outcome: Done) -> None:
        output = None if outcome.output is None else orjson.dumps(outcome.output).decode()
        meta = dict(outcome.meta or {}) | (_asked(piece, outcome.input) if outcome.input is not None else {})
        self._say(piece, record, "ok", output, outcome.confidence, outcome.needs_review, meta=orjson.dumps(meta).decode() if meta else None)
        for effect in outcome.effects:
            self.effects.append({
                "raw": record.id, "rerun": piece.rerun, "lane": piece.lane, "quiet": not piece.speaks_for(record), "shared": piece.shared,
                "kind": effect.kind, "key": effect_key(effect, record),
                "target": effect.target, "body": effect.body, "occurred": record.occurred_at,
            })  # fmt: skip

    def _say(
        self, piece: Slice, record: Record, status: str, output: str | None = None, confidence: float | None = None,
        review: bool = False, error: str | None = None, meta: str | None = None,
    ) -> None:  # fmt: skip
        self.ids.append(record.id)
        self.reruns.append(piece.rerun)
        self.said.append((status, output, confidence, review, error, meta))

    def _retry(self, piece: Slice, record: Record, outcome: Retry) -> None:
        self.retries.append({
            "source": piece.source_id, "raw": record.id, "rerun": piece.rerun, "lane": piece.lane, "quiet": piece.quiet, "share": piece.share,
            "attempt": piece.attempt,
            "crashes": piece.crashes, "counts": outcome.counts, "after": outcome.after,
            "error": {"kind": "retry", "message": clean(outcome.reason)},
            "history": orjson.loads(piece.history) if piece.history else None,
        })  # fmt: skip

    def _numbers(self) -> tuple[list[Any], list[int] | None]:
        """Counts per slice and ids of the results; None where the slices themselves say it."""
        whole = all(n is None for n in self.nexts)
        counts: list[Any] = [list(c) for c in zip(*self.counts, strict=True)]
        if not self.bare or not whole:
            ids = [r.id for s in self.slices for r in s.records[s.settled : len(s.outcomes)]] if self.bare else self.ids
            return counts, ids
        if all(s.n_rows == 1 for s in self.slices):
            return [None] * 4, None
        if all(s.raw_id_to - s.raw_id + 1 == s.n_rows for s in self.slices):
            return [counts[0], None, None, None], None
        return [counts[0], None, None, None], [r.id for s in self.slices for r in s.records[s.settled :]]

    def arguments(self) -> Sequence[Any]:
        """$5 to $24 of tailrace.settle; what is the same for all is said once."""
        whole = all(n is None for n in self.nexts)
        sources, raws, tokens = [s.source_id for s in self.slices], [s.raw_id for s in self.slices], [s.token for s in self.slices]
        counts, ids = self._numbers()
        results: list[Any] = [None] * 8
        if self.said:
            status, output, confidence, review, error, meta = (list(c) for c in zip(*self.said, strict=True))
            results = [self.reruns, status, output, confidence, review, error, meta, None]
        return (
            sources[:1] if len(set(sources)) == 1 else sources,
            raws,
            tokens[:1] if len(set(tokens)) == 1 else tokens,
            None if whole else self.nexts,
            None if whole else self.lefts,
            *counts,
            ids,
            *results,
            orjson.dumps(self.retries).decode() if self.retries else None,
            orjson.dumps(self.effects).decode() if self.effects else None,
        )
