"""What a repository holds: as one CAR file or record by record, and how it stands. Both give the same records."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing, suppress
from typing import Any, NamedTuple, TypeVar

from collector.sources.bluesky_car import Entry, Incomplete, Repository
from collector.sources.bluesky_client import Client, Gone, Missing
from collector.sources.bluesky_home import Home
from collector.sources.bluesky_records import Maker, wanted
from collector.sources.bluesky_values import text_of
from worker.core.errors import TailraceError, Unavailable
from worker.core.models import RawRecord
from worker.core.settings import CollectorSettings

MOST_LISTED = 100  # records that listRecords gives at once
T = TypeVar("T")


class Part(NamedTuple):
    """Some records in the order of their paths, as they stood when the repository was at `rev`."""

    rev: str
    paths: list[str]
    records: list[RawRecord]


class History:
    """Of one account."""

    def __init__(
        self, home: Home, client: Client, maker: Maker, settings: CollectorSettings, collections: list[str], *, by_list: bool, most: int
    ) -> None:
        self._home, self._client, self._maker, self._settings = home, client, maker, settings
        self._collections, self._by_list, self._most = collections, by_list, most

    async def latest(self) -> str:
        """The newest revision. Raises Gone where the host does not give the repository."""
        answer = await self._asked("com.atproto.sync.getLatestCommit", "did")
        if not isinstance(answer, dict) or not isinstance(answer.get("rev"), str):
            raise Unavailable("getLatestCommit answered something else: there is no revision in it")
        return str(answer["rev"])

    async def parts(self, latest: str, after: str = "") -> AsyncGenerator[Part, None]:
        """All wanted records whose path comes after `after`; at least one part, which may be empty. Raises Incomplete.

        `latest` is a revision that the repository has reached.
        """
        async with aclosing(self._listed(latest) if self._by_list else self._car(latest, after)) as parts:
            async for part in parts:
                yield part

    async def _car(self, latest: str, after: str) -> AsyncGenerator[Part, None]:
        did, host = await self._home.find()
        with Repository() as repository:
            async with aclosing(self._client.stream(f"{host}/xrpc/com.atproto.sync.getRepo", {"did": did}, self._most)) as pieces:
                async for piece in pieces:
                    repository.feed(piece)
            repository.close()
            if repository.commit.get("did") != did:
                raise Incomplete(f"{host} sent the repository of {repository.commit.get('did')} for {did}")
            rev = str(repository.commit.get("rev") or latest)
            for entries in self._pages(repository.entries(after)):
                yield Part(rev, [e.path for e in entries], [self._maker.entry(did, e, rev, {"via": "car"}) for e in entries])
                await asyncio.sleep(0)

    def _pages(self, entries: Iterator[Entry]) -> Iterator[list[Entry]]:
        """Of the size that the collector likes; the last one may be empty."""
        page: list[Entry] = []
        size = 0
        for entry in entries:
            if wanted(self._collections, entry.path.partition("/")[0]):
                page.append(entry)
                size += len(entry.block)
            if len(page) >= self._settings.page_records or size >= self._settings.page_bytes:
                yield page
                page, size = [], 0
        yield page

    async def _listed(self, latest: str) -> AsyncGenerator[Part, None]:
        last = ""
        for name in await self.collections():
            cursor: str | None = None
            while True:
                part, cursor = await self.listed(name, cursor, MOST_LISTED, latest)
                if part.paths != sorted(part.paths) or (part.paths and part.paths[0] <= last):
                    raise Incomplete('the host lists records in no order, so that nobody can tell what is missing; use method = "car"')
                last = part.paths[-1] if part.paths else last
                yield part
                if cursor is None:
                    break
        yield Part(latest, [], [])

    async def listed(self, collection: str, cursor: str | None, size: int, rev: str) -> tuple[Part, str | None]:
        """One page of one collection, oldest keys first, and where the next one begins: None at its end."""
        answer = await self._asked(
            "com.atproto.repo.listRecords", "repo", collection=collection, limit=min(size, MOST_LISTED), cursor=cursor, reverse=True
        )
        try:
            rows = [(r["uri"].split("/", 3)[3], r["cid"] + "", text_of(r["value"])) for r in answer["records"]]
            following = (answer.get("cursor") or "") + ""
        except (KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
            raise Unavailable(f"listRecords of {collection} answered something else: {error!r}") from error
        records = [self._maker.listed(self._home.did, path, cid, value, rev, {"via": "list"}) for path, cid, value in rows]
        return Part(rev, [path for path, _, _ in rows], records), (following or None) if rows else None

    async def collections(self) -> list[str]:
        """The wanted ones that the repository has, in the order of paths."""
        answer = await self._asked("com.atproto.repo.describeRepo", "repo")
        named = answer.get("collections") if isinstance(answer, dict) else None
        if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
            raise Unavailable("describeRepo answered something else: there are no collections in it")
        return sorted((name for name in named if wanted(self._collections, name)), key=lambda name: f"{name}/")

    async def _asked(self, method: str, what: str, **more: Any) -> Any:
        """Asks the account's host; where that refuses, whether it lives elsewhere by now."""

        async def call() -> Any:
            did, host = await self._home.find()
            return await self._client.call(host, method, **{what: did}, **more)

        return await self._wherever(call)

    async def _wherever(self, call: Callable[[], Awaitable[T]]) -> T:
        try:
            return await call()
        except (Gone, Missing, Unavailable):
            with suppress(TailraceError):
                if await self._home.moved():
                    return await call()
            raise
