"""x: the posts of one account of X, or those that a recent search finds. The service reaches back 3,200 posts, a search seven days."""

from __future__ import annotations

import asyncio
import datetime as dt
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from collector.sources import Known, Page, Window, source
from collector.sources.answers import Quota
from collector.sources.secrets import secret
from collector.sources.x_client import Client
from collector.sources.x_money import NAME, Bill
from collector.sources.x_posts import COUNTERS, Sheet, Span, sheet, snowflake, span, tombstone
from collector.sources.x_reach import Reach, number
from collector.sources.x_recheck import Recheck
from worker.core.errors import Misconfigured
from worker.core.models import RawRecord
from worker.core.settings import CollectorSettings, utcnow
from worker.core.specs import Names, Seconds, listed

_HANDLE = re.compile(r"@?([A-Za-z0-9_]{1,15})")
EVERY = 300.0
BEGIN = dt.timedelta(hours=24)  # what the first poll reads of the past; what is older is history, for a backfill
FULL = 100  # posts of one answer, at most
_FIELDS = "attachments author_id context_annotations conversation_id created_at edit_controls edit_history_tweet_ids entities geo in_reply_to_user_id"
_MORE_FIELDS = "lang note_tweet possibly_sensitive public_metrics referenced_tweets reply_settings source withheld"
Excluded = Annotated[list[Literal["retweets", "replies"]], BeforeValidator(listed)]


class XOptions(BaseModel):
    """`[sources.NAME]` of kind x."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    token_env: str | None = Field(None, description="environment variable that holds the bearer token of an app")
    token_file: str | None = Field(None, description="file that holds it")
    query: str | None = Field(None, min_length=1, description="a recent search instead of the account that the name tells; X's own language")
    exclude: Excluded = Field(default_factory=list, description="of an account: `retweets`, `replies` (then only 800 posts can be reached)")
    recheck: Seconds = Field(86_400.0, description="posts are read again for so long, for edits and deletions; on a later UTC day X bills them again")
    budget: float | None = Field(None, gt=0, description="USD that all sources of kind x together may spend in a period; then they wait for the next")
    budget_period: Literal["day", "month"] = Field("month", description="when the budget begins anew, in UTC")
    price_per_post: float = Field(0.005, ge=0, description="USD for a post that is read, once in a UTC day")
    price_per_user: float = Field(0.010, ge=0, description="USD for an account that is looked up, or comes along as an author, once in a UTC day")
    tweet_fields: Names = Field(default_factory=lambda: [*_FIELDS.split(), *_MORE_FIELDS.split()], description="fields of a post that are asked for")
    user_fields: Names = Field(default_factory=lambda: ["created_at", "name", "username", "verified"], description="fields of its author")
    expansions: Names = Field(default_factory=lambda: ["author_id"], description="what comes along with a post, in `includes`")
    ignore_fields: Names = Field(default_factory=lambda: list(COUNTERS), description="fields whose change is no edit; dots go deeper")
    base_url: str = Field("https://api.x.com", pattern=r"^https?://", description="where the service is")


@source("x", XOptions)
class X:
    """Ids are times, so a position is ids alone: all to `since` is stored and, while a poll is on its way down from `top`, all down to `until`."""

    def __init__(self, name: str, options: XOptions, settings: CollectorSettings) -> None:
        self.name = name
        self.caught_up = False
        self.exclusive: tuple[str, ...] = ()
        self.exclusive_history: tuple[str, ...] = ()
        self.limits: tuple[str, ...] = (NAME, "x:search" if options.query else "x:timeline")
        self.every = EVERY
        self.gap = asyncio.Event()
        self._o = options
        self._handle = _handle(name, options)
        self._user = ""
        self._count: int | None = None
        token = secret(name, "the bearer token", options.token_env, options.token_file)
        if token is None:
            raise Misconfigured(f"sources.{name}: X needs a bearer token", "name one by token_env or token_file")
        self._client = Client(name, token, options.base_url)
        self.aclose = self._client.aclose
        self._bill = Bill(options.price_per_post, options.price_per_user, options.budget, options.budget_period)
        self._reach = Reach(search=bool(options.query), exclude=options.exclude)
        self._recheck = Recheck(f"{options.query or ''} {','.join(sorted(options.exclude))}".strip(), options.recheck, self._reach)
        self._quotas: tuple[Quota, ...] = ()

    def describe(self) -> str:
        what = f"the search {self._o.query!r}" if self._o.query else f"posts of @{self._handle}"
        money = f"{self._o.budget:g} USD a {self._o.budget_period}" if self._o.budget else "no budget set"
        return f"{what} ({self._reach}; {money})"

    async def poll(self, position: dict[str, Any]) -> AsyncGenerator[Page, None]:
        since = number(position, "since") or snowflake(utcnow() - BEGIN)
        top, until, count = (number(position, name) for name in ("top", "until", "count"))
        async with aclosing(self._sheets(self._reach.since(since), until)) as sheets:
            async for found in sheets:
                upper = until or found.newest
                top, until, count = top or upper, found.oldest or until, count + len(found.posts)
                whole = not found.next and self._reach.whole(since, top, count)
                going = {"since": str(since), "top": str(top), "until": str(until), "count": count}
                after = position if not top else going if found.next else {"since": str(top)}
                records = [post.record for post in reversed(found.posts)]
                yield self._page(records, after, span(since if whole else until, upper) if upper else None)

    async def chunk(self, position: dict[str, Any], size: int, window: Window) -> Page:
        """Newest first, bounded by ids: what comes meanwhile moves nothing."""
        since = snowflake(window.since) - 1 if window.since else 0
        bounds = (number(position, "until"), snowflake(window.until) if window.until and window.until < utcnow() else 0)
        until = min(filter(None, bounds), default=0)
        if self._reach.ended(until):
            return Page([], position, more=False)
        found, token = await self._sheet(self._reach.since(since), until, size), None
        while not found.posts and (token := found.next):
            found = await self._sheet(self._reach.since(since), until, size, token)
        posts = found.posts[:size]
        more = bool(found.next) or len(posts) < len(found.posts)
        records = [post.record for post in posts if window.holds(post.record.occurred_at)]
        oldest = posts[-1].id if posts else 0
        after = {"until": str(oldest)} if oldest else position
        return self._page(records, after, span(oldest, until or found.newest) if oldest else None, more=more and bool(oldest))

    async def heal(self, position: dict[str, Any], tail: dict[str, Any], known: Known) -> AsyncGenerator[Page, None]:
        """What was edited or deleted of late: newest first, as the service gives it."""
        newest = number(tail, "top") or number(tail, "since")
        if not newest:
            return
        async with aclosing(self._recheck.run(position, newest, known, self._sheets)) as looks:
            async for look in looks:
                records = [*reversed(look.records), *map(tombstone, look.gone)]
                yield self._page(records, look.position, span(look.lower, look.upper - 1))

    def _page(self, records: list[RawRecord], position: dict[str, Any], times: Span | None, *, more: bool = True) -> Page:
        return Page(records, position, times, quotas=self._quotas, spent=self._bill.spent(), more=more, total=self._reach.of(self._count))

    async def _sheets(self, since: int, until: int) -> AsyncGenerator[Sheet, None]:
        """All posts between these ids, both excluded; 0: no bound."""
        found = await self._sheet(since, until, FULL)
        yield found
        while found.next:
            found = await self._sheet(since, until, FULL, found.next)
            yield found

    async def _sheet(self, since: int, until: int, size: int, token: str | None = None) -> Sheet:
        o = self._o
        asked = {
            "since_id": since or None, "until_id": until or None, "max_results": max(self._reach.least, min(size, FULL)),
            "tweet_fields": o.tweet_fields or None, "user_fields": o.user_fields or None, "expansions": o.expansions or None,
        }  # fmt: skip
        if o.query:
            told, self._quotas = await self._client.search(o.query, next_token=token, **asked)
        else:
            told, self._quotas = await self._client.timeline(await self._account(), exclude=o.exclude or None, pagination_token=token, **asked)
        found = sheet(told, o.ignore_fields)
        self._bill.add("post", (str(post.id) for post in found.posts))
        self._bill.add("user", found.authors)
        return found

    async def _account(self) -> str:
        """Its id, looked up once."""
        if not self._user:
            self._user, self._count = await self._client.user(self._handle)
            self._bill.add("user", [self._user])
        return self._user


def _handle(name: str, options: XOptions) -> str:
    found = _HANDLE.fullmatch(name.partition(":")[2])
    if options.query and options.exclude:
        raise Misconfigured(f"sources.{name}: `exclude` is for accounts", "say it in the query: -is:retweet -is:reply")
    if found is None and not options.query:
        raise Misconfigured(f"sources.{name}: that is no handle of X", "x:NAME reads the account NAME; with `query`, NAME may be any")
    return found[1] if found else ""
