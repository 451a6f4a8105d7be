"""github: the pull requests of one repository, by GraphQL. `[sources."github:owner/repo"]`.

News are polled in the order of the last change, history is read in the order of opening; both give the same records, so one may run beside
the other. A pull request is one record, named by its number; each change of its content is a revision. Comments are counted, but a further
comment alone is no revision (as with views elsewhere), unless `ignore_fields` is set to nothing.

Webhooks come as another source, of kind webhook with `signature = "github"`: each event is a record named by its delivery id, within a
second of its happening, with what only the event tells (action, sender). GitHub does not send again what it could not deliver, and a poll
does. So let a pipeline want both (`sources = ["webhook:github", "github:*"]`), act on whichever shows a state first, and name what it does
by repository, number and state in the effect's key: then the other one changes nothing.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import AsyncGenerator
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from collector.sources import Page, Window, source
from collector.sources.github_client import Client, LostCursor, Pulls
from collector.sources.github_orders import Changes, History
from collector.sources.github_pulls import Records, query
from collector.sources.secrets import secret
from worker.core.errors import Misconfigured, Unavailable
from worker.core.models import RawRecord
from worker.core.settings import CollectorSettings
from worker.core.specs import Names, Seconds

MOST, LEAST = 100, 5  # pull requests that GitHub gives at once; fewer where it takes too long
EVERY = 60.0


class GithubOptions(BaseModel):
    """`[sources.NAME]` of kind github."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    token_env: str | None = Field(None, description="environment variable that holds the token; default GITHUB_TOKEN")
    token_file: str | None = Field(None, description="file that holds the token")
    account: str = Field("", description="whose budget the token spends, in a word; sources of the same account wait together")
    base_url: str = Field("https://api.github.com", description="another one for an Enterprise Server: https://host/api/v3")
    timeout: Seconds = Field(30.0, gt=0, description="for one answer")
    reviews: bool = Field(False, description="also the first 100 reviews: author, state, submittedAt")
    fields: str = Field("", description="further fields of PullRequest as GraphQL, e.g. `milestone { title } reviewDecision`")
    ignore_fields: Names = Field(default_factory=lambda: ["comments"], description="fields whose change alone is no revision; dots go deeper")
    lookback: Seconds = Field(86400.0, description="how far the first poll goes back; older changes are the backfill's")


@source("github", GithubOptions)
class Github:
    """One repository."""

    def __init__(self, name: str, options: GithubOptions, settings: CollectorSettings) -> None:
        if not re.fullmatch(r"github:[\w-]+/(?!\.{1,2}$)[\w.-]+", name, re.ASCII):
            raise Misconfigured(f"sources.{name}: this names no repository", 'write it as [sources."github:owner/repo"]')
        env = options.token_env or (None if options.token_file else "GITHUB_TOKEN")
        token = secret(name, "a token of GitHub", env, options.token_file) or SecretStr("")
        limit = f"github:graphql:{options.account}" if options.account else "github:graphql"
        self.name = name
        self.caught_up = False
        self.exclusive: tuple[str, ...] = ()
        self.exclusive_history: tuple[str, ...] = ()
        self.limits = (limit,)
        self.every = EVERY
        self._o = options
        self._settings = settings
        self._most = self._size = min(MOST, settings.page_records)
        self._records = Records(options.ignore_fields)
        self._client = Client(name, limit, query(options.fields, reviews=options.reviews), token, options.base_url, options.timeout)
        self.aclose = self._client.aclose

    def describe(self) -> str:
        return f"pull requests of {self.name.partition(':')[2]} at {self._o.base_url}, asked every {self.every:g} s"

    async def poll(self, position: dict[str, Any]) -> AsyncGenerator[Page, None]:
        """In the order of change, newest first. Nothing is stored where nothing happened."""
        changes = Changes(position, dt.timedelta(seconds=self._settings.overlap), dt.timedelta(seconds=self._o.lookback))
        while changes.more:
            try:
                answer = await self._changed(changes.cursor)
            except LostCursor:
                changes.anew()
                continue
            records = [self._records.record(n) for n in changes.take(answer)]
            reached = changes.reached(records)
            yield Page([] if reached == position else records, reached, changes.times(), quotas=answer.quotas)

    async def _changed(self, after: str | None) -> Pulls:
        """A page by last change. One that GitHub cannot make in time is smaller the next time."""
        try:
            answer = await self._client.pulls("UPDATED_AT", "DESC", self._size, after)
        except Unavailable:
            self._size = max(self._size // 2, min(LEAST, self._most))
            raise
        self._size = min(self._size * 2, self._most)
        return answer

    async def chunk(self, position: dict[str, Any], size: int, window: Window) -> Page:
        """In the order of opening, by as few requests as may be; fewer than `size` where they are very large."""
        history, records, left, room = History(position, window), list[RawRecord](), size, self._settings.page_bytes
        while history.more and left > 0 and room > 0:
            try:
                answer = await self._client.pulls("CREATED_AT", history.direction, min(left, MOST), history.cursor)
            except LostCursor:
                history.anew()
                records, left = [], size
                continue
            found = [self._records.record(n) for n in history.take(answer)]
            records += found
            left, room = left - max(len(answer.nodes), 1), room - sum(len(r.payload or r.body or "") for r in found)
        return Page(records, history.reached(), history.times(), history.ids(), history.quotas, more=history.more, total=history.total)
