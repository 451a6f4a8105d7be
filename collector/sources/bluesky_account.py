"""One account: its news from a stream, its history and what the stream missed from its repository."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from collector.sources import Known, Page, Window
from collector.sources.answers import Denied
from collector.sources.bluesky_client import Client, Gone, Missing, host_of, limit_of
from collector.sources.bluesky_events import JETSTREAM
from collector.sources.bluesky_healing import Healer
from collector.sources.bluesky_history import History, Part
from collector.sources.bluesky_home import Home
from collector.sources.bluesky_intake import Intake
from collector.sources.bluesky_options import JETSTREAM as PUBLIC
from collector.sources.bluesky_options import BlueskyOptions
from collector.sources.bluesky_records import Maker
from collector.sources.bluesky_tail import Stream, whole_address
from worker.core.models import RawRecord
from worker.core.settings import CollectorSettings


class Account:
    """Tailed and healed. How its history is read is said by the subclasses."""

    exclusive: tuple[str, ...] = ()
    exclusive_history: tuple[str, ...] = ()

    def __init__(self, name: str, options: BlueskyOptions, settings: CollectorSettings) -> None:
        self.name = name
        self._o = options
        self._path = name.partition(":")[2]
        self._transport = options.transport or JETSTREAM
        self._given = options.stream or (PUBLIC if self._transport == JETSTREAM else "")  # else the firehose of its host
        self._client = Client(name)
        self._home = Home(name, self._path, self._client, pds=options.pds, plc=options.plc, resolver=options.resolver)
        self._intake = Intake(self._transport, Maker(whole=False), options.collections, [])
        self._stream = Stream(self._transport, self._intake, settings, options.heartbeat)
        self._history = History(
            self._home, self._client, Maker(whole=False), settings, options.collections,
            by_list=options.method == "list", most=options.max_repo_bytes,
        )  # fmt: skip
        self._healer = Healer(name, self._home, self._client, self._history, self._stream, self._intake, options.collections, settings.page_records)
        self.gap = self._intake.gap
        self.limits: tuple[str, ...] = (limit_of(options.pds),) if options.pds else ()  # else an answer of the host tells its name

    @property
    def caught_up(self) -> bool:
        return self._stream.caught_up

    @caught_up.setter
    def caught_up(self, value: bool) -> None:
        self._stream.caught_up = value

    def describe(self) -> str:
        of = ", ".join(self._o.collections) or "all collections"
        where = host_of(whole_address(self._given, self._transport)) if self._given else "its host"
        how = "listRecords" if self._o.method == "list" else "getRepo"
        return f"{of} of {self._path}, news from the {self._transport} of {where}, history by {how}"

    async def tail(self, position: dict[str, Any], stop: asyncio.Event) -> AsyncGenerator[Page, None]:
        self._home.pin(position.get("did"))
        while not stop.is_set():
            did = await self._home.who()
            self._intake.dids = {did}
            address = self._given or (await self._home.find())[1]
            async with aclosing(self._stream.pages(address, position, stop, did)) as pages:
                async for page in pages:
                    yield page
                    position = page.position
                    self._heed()

    def _heed(self) -> None:
        """What the stream said about the account: it may live elsewhere, or be there again."""
        for event in self._intake.states:
            self.gap.set()
            if event.kind == "identity":
                self._home.forget()
                if not self._given:
                    self._stream.leave.set()
        self._intake.states.clear()

    async def heal(self, position: dict[str, Any], tail: dict[str, Any], known: Known) -> AsyncGenerator[Page, None]:
        async with aclosing(self._healer.pages(position, tail, known)) as pages:
            async for page in pages:
                yield page

    async def aclose(self) -> None:
        await self._client.aclose()

    async def _latest(self, position: dict[str, Any]) -> str:
        """The newest revision, for a backfill. Raises Denied where the account is gone: nothing is complete then."""
        self._home.pin(position.get("did"))
        try:
            return await self._history.latest()
        except Gone as gone:
            raise Denied(self.name, str(gone), "the account is not to be had at present; `collector live` notices when it is back") from gone


class AccountByCar(Account):
    """Its history is one file. The position: the revision at which the pass began, and the path up to which it came ("" when it is over)."""

    async def fetch(self, position: dict[str, Any]) -> AsyncGenerator[Page, None]:
        latest = await self._latest(position)
        began, after, of = position.get("rev"), position.get("after"), position.get("of")
        if not isinstance(began, str) or not isinstance(after, str) or of != self._o.collections or (not after and began != latest):
            began, after = latest, None
        if after == "":
            return
        head = {"did": self._home.did, "rev": began, "of": self._o.collections}
        async with aclosing(self._history.parts(latest, after or "")) as parts:
            async for part in parts:
                if part.paths:
                    yield Page(part.records, head | {"after": part.paths[-1]}, quotas=self._client.quotas)
        yield Page([], head | {"after": ""}, quotas=self._client.quotas)

    @property
    def unread(self) -> list[str]:
        return []

    def joined(self, position: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
        """Both lanes are of the same account, whoever has its handle by now."""
        return position if "did" in position or "did" not in other else position | {"did": other["did"]}


class AccountByList(Account):
    """Its history is read page by page. The position: the revision at which the pass began, the collections left, where in the first of them."""

    async def chunk(self, position: dict[str, Any], size: int, window: Window) -> Page:
        self._home.pin(position.get("did"))
        rev, left, cursor = position.get("rev"), position.get("left"), position.get("cursor")
        sound = isinstance(rev, str) and isinstance(left, list) and all(isinstance(n, str) for n in left) and isinstance(cursor, str | None)
        if not sound or not left or position.get("of") != self._o.collections:
            rev, left, cursor = await self._latest(position), await self._history.collections(), None
        records: list[RawRecord] = []
        if left:
            part, cursor = await self._listed(left[0], cursor, size, rev)
            records = [r for r in part.records if window.holds(r.occurred_at)]
            left = left if cursor is not None else left[1:]
        head = {"did": self._home.did, "rev": rev, "of": self._o.collections, "left": left, "cursor": cursor}
        return Page(records, head, quotas=self._client.quotas, more=bool(left))

    async def _listed(self, *asked: Any) -> tuple[Part, str | None]:
        try:
            return await self._history.listed(*asked)
        except Missing:  # also said of an account that is gone
            await self._latest({})
            raise
