"""The state machine of sql/ under Hypothesis: every arrow in any order, from two sessions, with the database's clock in hand.

The model knows what is in raw, which token holds what, and which records each version owes. The database's answers are compared with
it, and `invariants` are asked after every step.
"""

from __future__ import annotations

import datetime as dt
import functools
import json
import uuid
from dataclasses import dataclass, field
from typing import Any

import psycopg
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.property import invariants

START = dt.datetime(2026, 11, 24, 12, tzinfo=dt.UTC)
SOURCES = (1, 2)
CRASHES, TRIES = 3, 3
SPEC = json.dumps({"max_attempts": 2, "retry_rounds": 1, "retry_base": 1, "retry_after": 600})
KEYS = st.lists(st.integers(0, 5), min_size=1, max_size=6)
LEASE = 30.0


@dataclass
class Piece:
    """A claimed slice, as its worker sees it."""

    source: int
    raw: int
    raw_to: int
    ids: list[int]
    rerun: int
    quiet: bool
    attempt: int
    crashes: int
    lane: int


@dataclass
class Claim:
    version: int
    until: dt.datetime
    pieces: list[Piece]
    since: dt.datetime


@dataclass
class Known:
    """The newest revision of a record."""

    digest: bytes | None = None
    time: dt.datetime | None = None
    revision: int = 0


@dataclass
class Model:
    raw: dict[tuple[int, str], Known] = field(default_factory=dict)
    claims: dict[uuid.UUID, Claim] = field(default_factory=dict)
    owed: dict[int, set[int]] = field(default_factory=dict)  # version -> raw ids that must be open or done
    moved: dict[int, set[int]] = field(default_factory=dict)  # version -> raw ids that went to a successor
    sending: dict[str, tuple[uuid.UUID, dt.datetime]] = field(default_factory=dict)


class Machine(RuleBasedStateMachine):
    """`open_database` is set by the test: a context of a fresh migrated database."""

    open_database: Any = None
    url = ""

    def __init__(self) -> None:
        super().__init__()
        self._leave = type(self).open_database()
        self.url = self._leave.__enter__()
        self.now = START
        self.tokens = 0
        self.one, self.two = (psycopg.connect(self.url, autocommit=True) for _ in range(2))
        self.model = Model()
        self.last_raw, self.raw_digest = 0, ""
        self.dead: list[tuple[uuid.UUID, Claim]] = []
        self._clock()

    def teardown(self) -> None:
        self.one.close()
        self.two.close()
        self._leave.__exit__(None, None, None)

    # ------------------------------------------------------------ helpers

    def _clock(self) -> None:
        for session in (self.one, self.two):
            session.execute(f"set tailrace.now = '{self.now.isoformat()}'")
            session.execute("select setseed(0)")  # the jitter of pauses

    def token(self) -> uuid.UUID:
        """Each one is new, and the same in each run of the same steps."""
        self.tokens += 1
        return uuid.UUID(int=self.tokens)

    def q(self, query: str, *parameters: Any, on: psycopg.Connection | None = None) -> list[Any]:
        found = (on or self.one).execute(query, parameters)
        return found.fetchall() if found.description else []

    def refused(self, code: str, call: Any) -> None:
        """The call fails with this code and changes nothing."""
        before = self.q(invariants.EVERYTHING)
        said = None
        try:
            call()
        except psycopg.Error as error:
            said = error.sqlstate
        assert said == code, f"{said} instead of {code}"
        assert self.q(invariants.EVERYTHING) == before, "a refused call changed something"

    def versions(self, *states: str) -> list[int]:
        return [r[0] for r in self.q("select id from tailrace.versions where state = any(%s) order by id", list(states))]

    def held(self) -> list[uuid.UUID]:
        return sorted(t for t, c in self.model.claims.items() if c.pieces)

    def expired(self) -> None:
        """What the watchdog takes away: every claim past its lease."""
        for token, claim in list(self.model.claims.items()):
            if claim.until < self.now:
                self.dead.append((token, self.model.claims.pop(token)))
        self.model.sending = {k: v for k, v in self.model.sending.items() if v[1] >= self.now}

    # ------------------------------------------------------------ raw

    @initialize(size=st.sampled_from([1, 3, 100]))
    def begin(self, size: int) -> None:
        self.q("select * from tailrace.register_sources('{files:a,files:b}', array['{}', '{}']::jsonb[])")
        self.q("select * from tailrace.register_version('p', 'v1', 'f', %s, %s, '{%%}', 'on_start', 't')", SPEC, size)
        self.model.owed = {1: set()}

    def _append(self, source: int, keys: list[int], variant: int, age: int | None, *, on: psycopg.Connection | None = None) -> list[int]:
        names = [f"k{k}" for k in keys]
        digests = [f"{k}-{variant}".encode() for k in keys]
        time = None if age is None else START - dt.timedelta(hours=age)
        ops = ["delete" if variant == 3 else "create"] * len(keys)
        wanted = [0, 0, 0]
        for name, digest in zip(names, digests, strict=True):
            known = self.model.raw.setdefault((source, name), Known())
            if known.digest == digest:
                wanted[1] += 1
                continue
            if time and known.time and time < known.time:
                wanted[2] += 1
                continue
            wanted[0] += 1
            self.model.raw[source, name] = Known(digest, time or known.time, known.revision + 1)
        row = self.q(
            "select * from tailrace.append_raw(%s, '{\"n\": 1}', 0, true, null, null, null, %s, %s, %s, null, %s, %s, null, null)",
            source, names, ops, digests, [time] * len(names), ["{}"] * len(names), on=on,
        )[0]  # fmt: skip
        assert list(row[:3]) == wanted, f"appended, unchanged, stale: {row[:3]}, the model says {wanted}"
        if not wanted[0]:
            return []
        ids = [
            r[0] for r in self.q("select id from tailrace.raw_records where source_id = %s and id between %s and %s", source, row[4], row[5], on=on)
        ]
        assert len(ids) == wanted[0]
        return ids

    def _owe(self, ids: list[int]) -> None:
        for version in self.versions("live", "shadow"):
            self.model.owed[version] |= set(ids)

    @rule(source=st.sampled_from(SOURCES), keys=KEYS, variant=st.integers(0, 3), age=st.one_of(st.none(), st.integers(0, 3)))
    def append(self, source: int, keys: list[int], variant: int, age: int | None) -> None:
        self._owe(self._append(source, keys, variant, age))

    @rule(source=st.sampled_from(SOURCES), count=st.integers(60, 140), start=st.integers(100, 10_000))
    def append_many(self, source: int, count: int, start: int) -> None:
        self._owe(self._append(source, list(range(start, start + count)), 0, None))

    @rule(first=KEYS, second=KEYS, again=KEYS, variant=st.integers(0, 2), lost=st.booleans())
    def append_side_by_side(self, first: list[int], second: list[int], again: list[int], variant: int, lost: bool) -> None:
        """Two transactions, two sources, ids between each other's; the second one may be lost before its commit."""
        saved = dict(self.model.raw)
        self.one.execute("begin")
        ids = self._append(1, first, variant, None)
        self.two.execute("begin")
        kept = dict(self.model.raw)
        others = self._append(2, second, variant, None, on=self.two)
        ids += self._append(1, again, (variant + 1) % 3, None)
        self.one.execute("commit")
        self._owe(ids)
        if lost:
            self.two.execute("rollback")
            self.model.raw = {k: v for k, v in self.model.raw.items() if k[0] == 1} | {k: v for k, v in kept.items() if k[0] == 2}
        else:
            self.two.execute("commit")
            self._owe(others)
        assert saved.keys() <= self.model.raw.keys() or lost

    # ------------------------------------------------------------ claims

    def _claimed(self, token: uuid.UUID, version: int, rows: list[Any]) -> None:
        pieces: list[Piece] = []
        at = 0
        while at < len(rows):
            head, raw = rows[at][0], rows[at][1]
            if len(head) == 1:
                head = [head[0], raw, raw, 1, 0, 0, 0, 0, 0]
            source, first, last, n, lane, rerun, attempt, crashes, quiet = head
            ids = [r[1] for r in rows[at : at + n]]
            assert ids == sorted(ids), "records of a slice are not in order"
            assert (ids[0], ids[-1]) == (first, last)
            pieces.append(Piece(source, first, last, ids, rerun, bool(quiet), attempt, crashes, lane))
            at += n
        taken = {(p.version, i) for t, c in self.model.claims.items() for p in [c] for piece in c.pieces for i in piece.ids}
        assert not taken & {(version, i) for p in pieces for i in p.ids}, "claimed twice"
        if pieces:
            self.model.claims[token] = Claim(version, self.now + dt.timedelta(seconds=LEASE), pieces, self.now)

    @rule(
        lane=st.sampled_from([0, 0, 2]),
        sources=st.sampled_from([[1], [2], [1, 2], [2, 1]]),
        each=st.integers(1, 4),
        limit=st.integers(1, 6),
        data=st.data(),
    )
    def claim(self, lane: int, sources: list[int], each: int, limit: int, data: Any) -> None:
        version = data.draw(st.sampled_from(self.versions("live", "shadow", "candidate", "retired")))
        token = self.token()
        rows = self.q(
            "select job, id from tailrace.claim_jobs(%s, 'w', %s, %s, %s, %s, %s, %s, %s)",
            token, version, lane, sources, [0] * len(sources), each, limit, LEASE,
        )  # fmt: skip
        assert sum(r[0] is not None for r in rows) <= min(limit, each * len(sources))
        self._claimed(token, version, rows)

    @rule(data=st.data())
    def claim_suspect(self, data: Any) -> None:
        version = data.draw(st.sampled_from(self.versions("live", "shadow", "candidate", "retired")))
        token = self.token()
        rows = self.q("select job, id from tailrace.claim_suspect(%s, 'w', %s, %s)", token, version, LEASE)
        assert sum(r[0] is not None for r in rows) <= 1
        self._claimed(token, version, rows)

    @precondition(lambda self: self.held() or self.dead)
    @rule(data=st.data(), cap=st.sampled_from([5.0, 1000.0]))
    def beat(self, data: Any, cap: float) -> None:
        tokens = data.draw(st.lists(st.sampled_from(self.held() + [t for t, _ in self.dead]), min_size=1, unique=True))
        alive = {r[0] for r in self.q("select * from tailrace.beat(%s, %s, %s)", tokens, [cap] * len(tokens), LEASE)}
        wanted = {t for t in tokens if t in self.model.claims and self.model.claims[t].until >= self.now}
        assert alive == wanted, "a beat must tell exactly which claims are lost"
        for token in wanted:
            claim = self.model.claims[token]
            claim.until = min(self.now + dt.timedelta(seconds=LEASE), claim.since + dt.timedelta(seconds=cap))

    @precondition(lambda self: self.held())
    @rule(data=st.data())
    def give_back(self, data: Any) -> None:
        token = data.draw(st.sampled_from(self.held()))
        claim = self.model.claims.pop(token)
        assert self.q("select tailrace.give_back(%s)", [token])[0][0] == len(claim.pieces)
        self.dead.append((token, claim))

    # ------------------------------------------------------------ settling

    def _settle(
        self, token: uuid.UUID, claim: Claim, plan: list[list[str]], gates: dict[str, Any] | None = None, mode: str = "run", *, missing: int = 0
    ) -> Any:
        """`plan`: an outcome for each record of each piece; shorter than the piece: a prefix."""
        ids, reruns, statuses, errors, retries, effects = [], [], [], [], [], []
        nexts: list[int | None] = []
        lefts: list[int | None] = []
        counts: list[list[int]] = []
        for piece, outcomes in zip(claim.pieces, plan, strict=True):
            rest = piece.ids[len(outcomes) :]
            nexts.append(rest[0] if rest else None)
            lefts.append(len(rest) if rest else None)
            counts.append([outcomes.count(n) for n in ("ok", "skipped", "failed", "retry")])
            for raw, outcome in zip(piece.ids, outcomes, strict=False):
                if outcome == "retry":
                    retries.append({"source": piece.source, "raw": raw, "rerun": piece.rerun, "lane": piece.lane, "quiet": piece.quiet,
                                    "attempt": piece.attempt, "crashes": piece.crashes, "counts": True, "error": {"kind": "retry", "message": "x"},
                                    "history": [{"kind": "retry"}] * piece.attempt})  # fmt: skip
                    continue
                ids.append(raw)
                reruns.append(piece.rerun)
                statuses.append(outcome)
                errors.append('[{"kind": "failed"}]' if outcome == "failed" else None)
                if gates is not None and outcome == "ok":
                    effects.append({"raw": raw, "rerun": piece.rerun, "quiet": piece.quiet, "kind": "k", "key": f"k:{raw % 7}", "target": "t",
                                    "body": {"n": raw % 3}, "occurred": START.isoformat()})  # fmt: skip
        if missing:
            ids, reruns, statuses, errors = ids[:-missing], reruns[:-missing], statuses[:-missing], errors[:-missing]
        whole = all(n is None for n in nexts)
        plain = whole and not gates and all(s == "ok" for s in statuses) and not retries and not any(reruns)
        dense = plain and not missing and all(p.raw_to - p.raw + 1 == len(p.ids) for p in claim.pieces)
        ok, skipped, failed, retried = ([c[i] for c in counts] for i in range(4))
        return self.q(
            "select * from tailrace.settle(%s, 'w', %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s::smallint[], %s, null, null, null, %s::jsonb[], null, null, %s, %s)",
            claim.version, mode, json.dumps(gates or {}), [p.source for p in claim.pieces], [p.raw for p in claim.pieces], [token] * len(claim.pieces),
            None if whole else nexts, None if whole else lefts, ok, None if plain else skipped, None if plain else failed, None if plain else retried,
            None if dense else ids, None if plain else reruns, None if plain else statuses, None if plain else errors,
            json.dumps(retries) if retries else None, json.dumps(effects) if effects else None,
        )  # fmt: skip

    @precondition(lambda self: self.held())
    @rule(
        data=st.data(),
        outcome=st.sampled_from(["ok", "skipped", "failed", "mixed", "retry"]),
        gate=st.sampled_from([None, {}, "never_twice", "never_lost"]),
    )
    def settle(self, data: Any, outcome: str, gate: Any) -> None:
        token = data.draw(st.sampled_from(self.held()))
        claim = self.model.claims[token]
        plan = []
        for piece in claim.pieces:
            if outcome == "mixed":
                few = piece.ids[:8]
                drawn = data.draw(st.lists(st.sampled_from(["ok", "skipped", "failed", "retry"]), min_size=len(few), max_size=len(few)))
                plan.append(drawn + ["ok"] * (len(piece.ids) - len(few)))
            else:
                plan.append([outcome] * len(piece.ids))
        gates = {"k": {"policy": gate}} if isinstance(gate, str) else gate
        before = {r[0] for r in self.q("select key from tailrace.deliveries")}
        live = claim.version in self.versions("live")
        row = self._settle(token, claim, plan, gates)[0]
        wanted = set()
        if gates and live:
            wanted = {
                f"k:{i % 7}" for p, o in zip(claim.pieces, plan, strict=True) if not p.quiet for i, s in zip(p.ids, o, strict=True) if s == "ok"
            } - before
        assert row[0] == len(wanted), f"released {row[0]}, the model says {sorted(wanted)}"
        del self.model.claims[token]
        self.dead.append((token, claim))

    @precondition(lambda self: any(len(p.ids) > 1 for c in self.model.claims.values() for p in c.pieces))
    @rule(data=st.data(), outcome=st.sampled_from(["ok", "skipped", "retry"]))
    def settle_a_prefix(self, data: Any, outcome: str) -> None:
        token = data.draw(st.sampled_from([t for t in self.held() if any(len(p.ids) > 1 for p in self.model.claims[t].pieces)]))
        claim = self.model.claims[token]
        lengths = [data.draw(st.integers(1, len(p.ids) - 1)) if len(p.ids) > 1 else 1 for p in claim.pieces]
        self._settle(token, claim, [[outcome] * n for n in lengths])
        rest = []
        for piece, n in zip(claim.pieces, lengths, strict=True):
            if piece.ids[n:]:
                piece.ids = piece.ids[n:]
                piece.raw = piece.ids[0]
                rest.append(piece)
        claim.pieces = rest
        if not rest:
            del self.model.claims[token]
            self.dead.append((token, claim))

    @precondition(lambda self: self.dead)
    @rule(data=st.data(), outcome=st.sampled_from(["ok", "skipped"]))
    def settle_too_late(self, data: Any, outcome: str) -> None:
        token, claim = data.draw(st.sampled_from(self.dead))
        self.refused("TR002", lambda: self._settle(token, claim, [[outcome] * len(p.ids) for p in claim.pieces]))

    @precondition(lambda self: self.held())
    @rule(data=st.data(), outcome=st.sampled_from(["ok", "skipped"]))
    def settle_with_a_strange_token(self, data: Any, outcome: str) -> None:
        claim = self.model.claims[data.draw(st.sampled_from(self.held()))]
        self.refused("TR002", lambda: self._settle(self.token(), claim, [[outcome] * len(p.ids) for p in claim.pieces]))

    @precondition(lambda self: self.held())
    @rule(data=st.data(), outcome=st.sampled_from(["ok", "skipped"]))
    def settle_with_an_outcome_missing(self, data: Any, outcome: str) -> None:
        token = data.draw(st.sampled_from(self.held()))
        claim = self.model.claims[token]
        self.refused("TR003", lambda: self._settle(token, claim, [[outcome] * len(p.ids) for p in claim.pieces], missing=1))

    @precondition(lambda self: self.held())
    @rule(data=st.data(), then=st.sampled_from(["settle", "claim", "append"]))
    def crash_before_the_commit(self, data: Any, then: str) -> None:
        """Everything of a transaction that never commits is gone."""
        token = data.draw(st.sampled_from(self.held()))
        claim = self.model.claims[token]
        raw = dict(self.model.raw)
        before = self.q(invariants.EVERYTHING)
        self.one.execute("begin")
        if then == "settle":
            self._settle(token, claim, [["ok"] * len(p.ids) for p in claim.pieces], {"k": {"policy": "never_twice"}})
        elif then == "claim":
            self.q("select job, id from tailrace.claim_jobs(%s, 'w', %s, 0, '{1,2}', '{0,0}', 5, 5, 30)", self.token(), claim.version)
        else:
            self._append(1, [1, 2, 3], 1, None)
        self.q("select pg_terminate_backend(%s)", self.one.info.backend_pid, on=self.two)
        self.one.close()
        self.one = psycopg.connect(self.url, autocommit=True)
        self._clock()
        self.model.raw = raw
        assert self.q(invariants.EVERYTHING) == before

    # ------------------------------------------------------------ time, the watchdog

    @rule(seconds=st.sampled_from([1, 10, 31, 700]))
    def time_passes(self, seconds: int) -> None:
        self.now += dt.timedelta(seconds=seconds)
        self._clock()

    @rule()
    def watch(self) -> None:
        lost = sum(c.until < self.now for c in self.model.claims.values() for _ in c.pieces)
        seen = self._open_of_retired()
        row = self.q("select * from tailrace.watch(%s, 200)", CRASHES)[0]
        assert row[0] == lost, f"rescued {row[0]}, the model says {lost}"
        self.expired()
        self._moved(seen)

    # ------------------------------------------------------------ versions and runs

    def _open_of_retired(self) -> dict[int, set[int]]:
        found: dict[int, set[int]] = {}
        for version, raw in self.q(
            "select j.version_id, r.id from tailrace.jobs j join tailrace.raw_records r on r.source_id = j.source_id and r.id between j.raw_id and j.raw_id_to "
            "where j.rerun = 0"
        ):
            found.setdefault(version, set()).add(raw)
        return found

    def _moved(self, before: dict[int, set[int]]) -> None:
        """Open work that went from one version to another is owed by that one now; what the live version has answered is owed by nobody else."""
        after = self._open_of_retired()
        versions = sorted(self.model.owed)
        done = {v: {r[0] for r in self.q("select raw_id from tailrace.results where version_id = %s and rerun = 0", v)} for v in versions}
        (live,) = self.versions("live")
        for version, ids in before.items():
            gone = ids - after.get(version, set()) - done[version]
            for other, now in after.items():
                if other != version and gone:
                    taken = gone & (now - before.get(other, set()))
                    self.model.moved.setdefault(version, set()).update(taken)
                    self.model.owed[version] -= taken
                    self.model.owed[other] |= taken
            if version in self.versions("retired"):
                self.model.moved.setdefault(version, set()).update(gone & done[live])
                self.model.owed[version] -= gone & done[live]

    @precondition(lambda self: len(self.model.owed) < 3)
    @rule(size=st.sampled_from([1, 2, 100]), promote=st.sampled_from(["on_start", "manual"]))
    def register_another(self, size: int, promote: str) -> None:
        before = self._open_of_retired()
        name = f"v{len(self.model.owed) + 1}"
        row = self.q("select * from tailrace.register_version('p', %s, %s, %s, %s, '{%%}', %s, 't')", name, name, SPEC, size, promote)[0]
        self.model.owed[row[0]] = set()
        self._moved(before)

    @rule(data=st.data())
    def swap(self, data: Any) -> None:
        before = self._open_of_retired()
        self.q("select tailrace.swap_live(%s, 't')", data.draw(st.sampled_from(sorted(self.model.owed))))
        self._moved(before)

    @rule(data=st.data())
    def shadow(self, data: Any) -> None:
        version = data.draw(st.sampled_from(sorted(self.model.owed)))
        self.q("update tailrace.versions set state = 'shadow' where id = %s and state = 'candidate'", version)

    @rule(data=st.data(), kind=st.sampled_from(["replay", "failed", "force"]), quiet=st.booleans())
    def open_run(self, data: Any, kind: str, quiet: bool) -> None:
        version = data.draw(st.sampled_from(sorted(self.model.owed)))
        spec = {"quiet": quiet} | ({kind: True} if kind != "replay" else {})
        self.q("select tailrace.open_run('replay', %s, %s)", version, json.dumps(spec))

    @rule(step=st.sampled_from([1, 7, 1000]))
    def advance_runs(self, step: int) -> None:
        for run, version, spec in self.q("select id, version_id, spec from tailrace.runs where state = 'active' order by id"):
            covered = {r[1] for r in self.q(invariants.COVERED) if r[0] == version}
            state, position, _, records, _ = self.q("select * from tailrace.advance_run(%s, %s)", run, step)[0]
            now = {r[1] for r in self.q(invariants.COVERED) if r[0] == version}
            assert now >= covered
            self.model.owed[version] |= now - covered
            if state == "done" and not spec.get("failed") and not spec.get("force"):
                everything = {r[0] for r in self.q("select id from tailrace.raw_records where id <= %s", position)}
                missing = sorted(everything - now - self.model.moved.get(version, set()))
                assert not missing, f"run {run} is done with {records} records and left out {missing[:9]}"

    # ------------------------------------------------------------ deliveries

    @rule(limit=st.integers(1, 3))
    def claim_deliveries(self, limit: int) -> None:
        token = self.token()
        for row in self.q("select key from tailrace.claim_deliveries(%s, 'w', 'k', %s, null, 20)", token, limit):
            assert row[0] not in self.model.sending, "a delivery claimed twice"
            self.model.sending[row[0]] = (token, self.now + dt.timedelta(seconds=20))

    @precondition(lambda self: self.model.sending)
    @rule(data=st.data(), outcome=st.sampled_from(["sent", "retry", "uncertain", "failed"]))
    def finish_delivery(self, data: Any, outcome: str) -> None:
        key = data.draw(st.sampled_from(sorted(self.model.sending)))
        token, _ = self.model.sending.pop(key)
        self.refused("TR002", lambda: self.q("select tailrace.finish_delivery(%s, %s, 'sent', null, null, 0, 'w')", key, self.token()))
        self.q("select tailrace.finish_delivery(%s, %s, %s, 'r', 'd', 1, 'w')", key, token, outcome)

    @precondition(lambda self: self.model.sending)
    @rule(data=st.data())
    def give_back_delivery(self, data: Any) -> None:
        key = data.draw(st.sampled_from(sorted(self.model.sending)))
        token, _ = self.model.sending.pop(key)
        assert self.q("select tailrace.give_back_deliveries(%s, %s, 'w')", [key], [token])[0][0] == 1

    @rule(data=st.data(), what=st.sampled_from(["release", "cancel", "sent", "pending", "cancelled"]))
    def a_person_decides(self, data: Any, what: str) -> None:
        effects = self.q("select id, key from tailrace.effects order by id limit 20")
        if not effects:
            return
        effect, key = data.draw(st.sampled_from(effects))
        state = next((r[0] for r in self.q("select state from tailrace.deliveries where key = %s", key)), None)
        if what == "release":
            release = functools.partial(self.q, "select tailrace.release_effect(%s, 'never_lost', 't')", effect)
            release() if state in (None, "cancelled", "failed") else self.refused("TR031", release)
        elif what == "cancel":
            assert self.q("select tailrace.cancel_delivery(%s, 't')", key)[0][0] == (state in ("pending", "uncertain", "failed"))
        else:
            assert self.q("select tailrace.resolve_delivery(%s, %s, null, 't')", key, what)[0][0] == (state in ("uncertain", "failed"))

    # ------------------------------------------------------------ always

    @invariant()
    def nothing_is_broken(self) -> None:
        if not self.model.owed:
            return
        query = " union all ".join(f"select {n} where exists ({text})" for n, text in enumerate(invariants.BROKEN.values()))
        found = self.q(query.replace("%", "%%") if "%" in query else query)
        if found:
            name = list(invariants.BROKEN)[found[0][0]]
            raise AssertionError(f"{name}: {self.q(invariants.BROKEN[name])[:5]}")

    @invariant()
    def every_record_is_open_or_done_once(self) -> None:
        covered: dict[int, dict[int, int]] = {}
        for version, raw, n in self.q(invariants.COVERED):
            covered.setdefault(version, {})[raw] = n
        for version, owed in self.model.owed.items():
            there = covered.get(version, {})
            assert not owed - there.keys(), f"version {version} lost {sorted(owed - there.keys())[:9]}"
            twice = [r for r, n in there.items() if n != 1]
            assert not twice, f"version {version} has {twice[:9]} more than once"

    @invariant()
    def raw_is_never_changed(self) -> None:
        if self.last_raw:
            assert self.q(invariants.RAW, self.last_raw)[0][0] == self.raw_digest
        self.last_raw = self.q("select coalesce(max(id), 0) from tailrace.raw_records")[0][0]
        self.raw_digest = self.q(invariants.RAW, self.last_raw)[0][0]
