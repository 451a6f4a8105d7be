"""rss: the entries of a feed (RSS, Atom, RDF), asked for as politely as it wishes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from typing import Annotated, Any, Literal

import httpx
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from collector.record import digest_of
from collector.sources import Page, source
from collector.sources.answers import Denied
from collector.sources.rss_entries import Feed, number, pace, read, records, remembered
from collector.sources.rss_http import Answer, Client, checked, joined, limit_of
from collector.sources.secrets import secret
from worker.core.errors import Unavailable
from worker.core.models import RawRecord
from worker.core.settings import CollectorSettings
from worker.core.specs import listed

EVERY, SLOWEST = 900.0, 86_400.0
Ignored = Annotated[list[Literal["title", "link", "summary", "content", "enclosures"]], BeforeValidator(listed)]


class RssOptions(BaseModel):
    """`[sources.NAME]` of kind rss."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    url_env: str | None = Field(None, description="environment variable that holds the address, where that is a secret; the name is then any word")
    url_file: str | None = Field(None, description="file that holds it")
    authorization_env: str | None = Field(None, description="environment variable that holds the Authorization header, e.g. `Basic dXNlcjpwYXNz`")
    authorization_file: str | None = Field(None, description="file that holds it")
    validators: Literal["both", "etag", "modified", "none"] = Field("both", description="which are sent back; some servers err when both are")
    obey_feed: bool = Field(True, description="ask more seldom where the feed says so (ttl, updatePeriod, max-age), once a day at least")
    max_bytes: int = Field(10_000_000, ge=1000, description="a larger feed is not read")
    max_entry_bytes: int = Field(1_000_000, ge=1000, description="a larger entry is a defect")
    ignore: Ignored = Field(default_factory=list, description="of title, link, summary, content, enclosures: what changes without being edited")
    pages: int = Field(1, ge=1, le=1000, description="a backfill follows the links to older pages (RFC 5005), so many documents in all")
    user_agent: str = Field("tailrace (feed reader)", min_length=1, description="how it introduces itself")


@source("rss", RssOptions)
class Rss:
    """A position holds what the server needs to say `nothing new`, and what of the feed has to be remembered from answer to answer."""

    def __init__(self, name: str, options: RssOptions, settings: CollectorSettings) -> None:
        self.name = name
        self.caught_up = False
        self.exclusive: tuple[str, ...] = ()
        self.exclusive_history: tuple[str, ...] = ()
        self._o = options
        self._settings = settings
        self._hidden = secret(name, "the address of the feed", options.url_env, options.url_file)
        url = checked(name, self._url)
        self._shown = url.host if self._hidden else f"{url.host}{url.path}"
        self._base = f"{url.scheme}://{url.netloc.decode()}/" if self._hidden else self._url
        login = secret(name, "the Authorization header", options.authorization_env, options.authorization_file)
        self._client = Client(name, self._shown, url, options.user_agent, login, options.max_bytes)
        self._ignored = frozenset(options.ignore)
        self.limits: tuple[str, ...] = (limit_of(self._shown),)
        self._every, self._told = EVERY, 0.0
        self._stored: tuple[str, dict[str, bytes]] = ("", {})  # the last document, and what its entries were

    @property
    def _url(self) -> str:
        return self._hidden.get_secret_value() if self._hidden else self.name.partition(":")[2]

    @property
    def every(self) -> float:
        """Seconds between two polls: ours, or the feed's where it wishes for longer ones."""
        return max(self._every, min(self._told, SLOWEST)) if self._o.obey_feed else self._every

    @every.setter
    def every(self, seconds: float) -> None:
        self._every = seconds

    def describe(self) -> str:
        return f"{self._shown} (validators: {self._o.validators})"

    async def poll(self, position: dict[str, Any]) -> AsyncGenerator[Page, None]:
        answer, url = await self._ask(position)
        self._told = max(number(position.get("pace")), answer.max_age)
        if answer.status == httpx.codes.NOT_MODIFIED:
            yield Page([], {**position, "url": url})
            return
        seen = digest_of(answer.body).hex()
        after = {
            "etag": answer.headers.get("etag"), "modified": answer.headers.get("last-modified"), "url": url, "seen": seen,
            "pace": position.get("pace"), "shared": position.get("shared"),
        }  # fmt: skip
        if seen == position.get("seen"):
            yield Page([], after)
            return
        feed = await self._read(answer)
        shared = _texts(position.get("shared"))
        made = await asyncio.to_thread(records, feed, self._ignored, shared)
        after |= {"pace": pace(feed.about), "shared": remembered(shared)}
        self._told = max(pace(feed.about), answer.max_age)
        known = self._stored[1] if self._stored[0] == position.get("seen") else {}  # a position that names it says that all of it is stored
        news = [r for r in made if known.get(r.external_id) != r.digest]
        *first, last = self._cut(news)
        for part in first:
            yield Page(part, position)
        self._stored = (seen, {r.external_id: r.digest for r in made})
        yield Page(last, after)

    async def fetch(self, position: dict[str, Any]) -> AsyncGenerator[Page, None]:
        """The feed as it is, and the older pages that it links to."""
        page, last, n = position.get("page"), position.get("after"), int(number(position.get("number")))
        url = joined(self._url, page) or self._url
        visited, shared = {self._url} - {url}, _texts(position.get("shared"))
        while url and n < self._o.pages and url not in visited:
            visited.add(url)
            feed = await self._read(await self._client.get(url, {}))
            made = await asyncio.to_thread(records, feed, self._ignored, shared)
            keys = [r.external_id for r in made]
            for part in self._cut(made[keys.index(last) + 1 if last in keys else 0 :]):
                yield Page(part, self._at(url, n, part[-1].external_id if part else last, shared))
            n, last, url = n + 1, None, joined(url, feed.about["next"])
            yield Page([], self._at(url, n, None, shared))
        yield Page([], self._at(None, None, None, shared))

    def _at(self, url: str | None, n: int | None, after: str | None, shared: set[str]) -> dict[str, Any]:
        """A position of `fetch`. The document of a feed whose address is a secret is not named: it begins anew."""
        known = {"page": None, "number": None} if self._hidden else {"page": url, "number": n}
        return {**known, "after": after, "shared": remembered(shared)}

    def joined(self, position: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
        """Only what the lanes have to call alike."""
        shared = _texts(position.get("shared")) | _texts(other.get("shared"))
        return position | ({"shared": remembered(shared)} if shared else {})

    @property
    def unread(self) -> list[str]:
        return []

    async def _ask(self, position: dict[str, Any]) -> tuple[Answer, str | None]:
        """The answer, and where the feed is now if it has moved for good. Where it is no longer there, it is looked for where it was."""
        validators = self._validators(position)
        moved = position.get("url")
        if isinstance(moved, str) and moved != self._url:
            try:
                answer = await self._client.get(moved, validators)
                return answer, answer.moved or moved
            except (Denied, Unavailable):
                validators = {}
        answer = await self._client.get(self._url, validators)
        return answer, None if self._hidden else answer.moved

    def _validators(self, position: dict[str, Any]) -> dict[str, str]:
        """Exactly as they came; not one that no header can hold: the feed is read anew instead."""
        names = {"both": ("etag", "modified"), "etag": ("etag",), "modified": ("modified",), "none": ()}[self._o.validators]
        headers = {"etag": "if-none-match", "modified": "if-modified-since"}
        known = {name: position[name] for name in names if isinstance(position.get(name), str)}
        return {headers[name]: text for name, text in known.items() if text.isascii() and text.isprintable()}

    async def _read(self, answer: Answer) -> Feed:
        return await read(answer.body, answer.headers.get("content-type", ""), self._base, self._o.max_entry_bytes)

    def _cut(self, made: list[RawRecord]) -> Iterator[list[RawRecord]]:
        """Pages of a size that one transaction may have; one that is empty for nothing."""
        part: list[RawRecord] = []
        size = 0
        for record in made:
            length = len(record.payload or record.body or "")
            if part and (len(part) >= self._settings.page_records or size + length > self._settings.page_bytes):
                yield part
                part, size = [], 0
            part.append(record)
            size += length
        yield part


def _texts(found: Any) -> set[str]:
    return {text for text in found if isinstance(text, str)} if isinstance(found, list) else set()
