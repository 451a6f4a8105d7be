"""What the tail did not bring, found by comparing the repository with raw: new records, edits, deletions, the account's state."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, suppress
from typing import Any

from collector.sources import Known, Page
from collector.sources.answers import Denied
from collector.sources.bluesky_client import Client, Gone
from collector.sources.bluesky_events import Event
from collector.sources.bluesky_history import History
from collector.sources.bluesky_home import Home
from collector.sources.bluesky_intake import Intake
from collector.sources.bluesky_records import Maker, stated, wanted
from collector.sources.bluesky_tail import Stream
from worker.core.models import RawRecord
from worker.core.service import rest_or_wake

GRACE = 5.0  # seconds for the tail to bring what is missing, before the repository is read instead
SOON = 0.2  # seconds in which a page of the tail is stored
END = "zzzzzzzz"  # after all names of collections, in any order of text


class Healer:
    """Of one account. The position of its lane: the revision up to which raw is known to be complete, and for which collections."""

    def __init__(
        self, name: str, home: Home, client: Client, history: History, stream: Stream, intake: Intake, collections: list[str], most: int
    ) -> None:
        self._name, self._home, self._client, self._history = name, home, client, history
        self._stream, self._intake, self._collections, self._most = stream, intake, collections, most
        self._maker = Maker(whole=False)

    async def pages(self, position: dict[str, Any], tail: dict[str, Any], known: Known) -> AsyncGenerator[Page, None]:
        """Nothing but a position where raw has all. Raises Denied where there is no such account, Incomplete where its host sends only a part."""
        self._home.pin(position.get("did") or tail.get("did"))
        try:
            await self._patient()
            latest = await self._history.latest()
            done = position.get("rev") if position.get("of") == self._collections else None
            if done != latest and await self._brought(done, latest, tail):
                self._intake.gap.set()  # it is being stored: look again in a moment
                return
            if done == latest or covers(tail, done, latest):
                yield Page([], self._done(latest), quotas=self._client.quotas)
                return
            async with aclosing(self._compared(position, latest, known)) as pages:
                async for page in pages:
                    yield page
        except Gone as gone:
            yield self._gone(gone, position)

    async def _patient(self) -> None:
        """The tail is asked for its news before the repository is."""
        with suppress(TimeoutError):
            async with asyncio.timeout(GRACE):
                await self._stream.connected.wait()

    async def _brought(self, done: str | None, latest: str, tail: dict[str, Any]) -> bool:
        """Whether the tail has brought, but perhaps not stored, everything since `done`; it gets a moment for that where it goes on from a cursor."""
        if covers(tail, done, latest):
            return False
        with suppress(TimeoutError):
            async with asyncio.timeout(GRACE):
                while self._behind(tail, latest):
                    self._intake.news.clear()
                    await self._intake.news.wait()
        if not covers(self._intake.place.position(), done, latest):
            return False
        await rest_or_wake(SOON, self._intake.gap)
        return True

    def _behind(self, tail: dict[str, Any], latest: str) -> bool:
        """Whether a connection that began at a cursor may still bring it."""
        going = self._stream.connected.is_set() and tail.get("cursor") is not None
        return going and (self._intake.place.rev or "") < latest

    async def _compared(self, position: dict[str, Any], latest: str, known: Known) -> AsyncGenerator[Page, None]:
        rev, last, odd, seen = latest, "", set[str](), set[str]()
        async with aclosing(self._history.parts(latest)) as parts:
            async for part in parts:
                rev = part.rev
                if part.paths:
                    there = await self._between(known, last, part.paths[-1], odd)
                    seen |= {r.external_id for r in part.records if "#" in r.external_id}
                    for lost in self._lost(there - set(part.paths), rev):
                        yield Page(lost, position)
                    last = part.paths[-1]
                    yield Page(part.records, position, quotas=self._client.quotas)
        there = await self._between(known, last, END, odd)
        for lost in self._lost(there | (odd - seen), rev):
            yield Page(lost, position)
        yield Page(await self._active(known), self._done(rev), quotas=self._client.quotas)

    async def _between(self, known: Known, first: str, last: str, odd: set[str]) -> set[str]:
        """Paths of records that raw has after `first`, up to `last`. Keys that were cut, and so stand elsewhere, go to `odd`."""
        found = set()
        for key in await known.between(first, last):
            collection = key.partition("/")[0]
            if "." not in collection or not wanted(self._collections, collection):
                continue
            if "#" in key:
                odd.add(key)
            elif first < key <= last:
                found.add(key)
        return found

    def _lost(self, paths: set[str], rev: str) -> Iterator[list[RawRecord]]:
        there = sorted(paths)
        for n in range(0, len(there), self._most):
            yield [self._maker.gone(self._home.did, path, rev, {"via": "heal"}) for path in there[n : n + self._most]]

    def _done(self, rev: str) -> dict[str, Any]:
        return {"did": self._home.did, "rev": rev, "of": self._collections}

    async def _active(self, known: Known) -> list[RawRecord]:
        """That the account is there again, where raw may think otherwise."""
        if not await known.among([f"account/{self._home.did}"]):
            return []
        return [self._stated({"active": True}, self._client.now)]

    def _gone(self, gone: Gone, position: dict[str, Any]) -> Page:
        """How the account stands; what was known of it stays."""
        if gone.status == "deleted" and not position and not self._intake.place.rev:
            raise Denied(self._name, str(gone), "check the name of the source; an account that moved is found by its DID document") from gone
        body = {"active": False, "status": gone.status, "error": str(gone)}
        return Page([self._stated(body, gone.at)], position, quotas=self._client.quotas)

    def _stated(self, body: dict[str, Any], at: Any) -> RawRecord:
        time = at.isoformat()
        return stated(Event("account", self._home.did, None, time, body={"did": self._home.did, "time": time, **body}), {"via": "heal"})


def covers(tail: dict[str, Any], done: Any, latest: str) -> bool:
    """Whether a stored position of the tail says that it brought everything between the revisions `done` and `latest`."""
    since, rev = tail.get("since"), tail.get("rev")
    return isinstance(since, str) and isinstance(rev, str) and isinstance(done, str) and since <= done and rev >= latest
