"""One page of pull requests of GitHub's GraphQL, whole, or the reason why there is none."""

from __future__ import annotations

import contextlib
import datetime as dt
import email.utils
import json
import re
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import httpx
import orjson
from githubkit import GitHub
from githubkit.exception import GitHubException, RateLimitExceeded, RequestFailed
from pydantic import SecretStr

from collector.record import Defect, moment
from collector.sources.answers import Denied, Limited, Quota
from worker.core.errors import Unavailable

PAUSE, LONGEST = 60.0, 7200.0  # seconds: where a limit does not say how long; more than the hour of GitHub's budgets is a mistake
_RATE = frozenset({"RATE_LIMITED", "RATE_LIMIT"})
_NO = frozenset({"FORBIDDEN", "INSUFFICIENT_SCOPES", "UNAUTHORIZED", "UNAUTHENTICATED"})
_ASKED_WRONG = frozenset({"EXCESSIVE_PAGINATION", "MAX_NODE_LIMIT_EXCEEDED", "MISSING_PAGINATION_BOUNDARIES"})
_WHOLE = re.compile(r"[0-9]{1,15}")
_UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND, _TOO_MANY = 401, 403, 404, 429


class LostCursor(Exception):
    """The service does not know the cursor (any more)."""


class Pulls(NamedTuple):
    """`nodes` as they came; `cursor` is the place after them; `at` is the service's clock."""

    nodes: list[dict[str, Any]]
    cursor: str | None
    more: bool
    total: int | None
    quotas: tuple[Quota, ...]
    at: dt.datetime


class _Kept(GitHub):  # type: ignore[misc]  # mypy does not follow the library: the models of its REST API are a million lines
    """Keeps one client for all calls. The library itself makes a client, and a connection, for each."""

    _open: httpx.AsyncClient | None = None

    @contextlib.asynccontextmanager
    async def get_async_client(self) -> AsyncIterator[httpx.AsyncClient]:
        if self._open is None:
            self._open = await self._create_async_client()
        yield self._open

    async def aclose(self) -> None:
        kept, self._open = self._open, None
        if kept is not None:
            await kept.aclose()


class Client:
    """Asks for pages of one repository. Neither waits nor tries again: whoever calls decides."""

    def __init__(self, name: str, limit: str, query: str, token: SecretStr, base_url: str, timeout: float) -> None:
        """`limit` names the budget that the token spends from, `name` the source in messages."""
        self._name, self._limit, self._query, self._token = name, limit, query, token
        self._owner, _, self._repo = name.partition(":")[2].partition("/")
        self._github = _Kept(
            token.get_secret_value(), base_url=base_url, timeout=timeout, auto_retry=False, http_cache=False,
            follow_redirects=False, user_agent="tailrace",
        )  # fmt: skip
        base = self._github.config.base_url
        self._url = str(base.copy_with(path=re.sub(r"(/api/v3)?/$", lambda m: "/api/graphql" if m[1] else "/graphql", base.path)))
        self.aclose = self._github.aclose

    async def pulls(self, field: str, direction: str, first: int, after: str | None) -> Pulls:
        """At most `first` (up to 100) after a cursor, in the order of `field`. Raises Limited, Denied, LostCursor, Unavailable."""
        by = {"field": field, "direction": direction}
        answer = await self._post({"owner": self._owner, "name": self._repo, "first": first, "after": after, "by": by})
        said, at = _json(answer.content), _clock(answer.headers)
        if not isinstance(said, dict):
            raise Unavailable("GitHub's answer is no JSON object, or was cut off")
        if said.get("errors"):
            raise self._error(said, answer.headers, after)
        return self._page(said.get("data"), after, at)

    async def _post(self, variables: dict[str, Any]) -> Any:
        try:
            return await self._github.arequest("POST", self._url, json={"query": self._query, "variables": variables})
        except RateLimitExceeded as error:
            raise self._limited(error.retry_after.total_seconds(), self._text(error.response.content)) from None
        except RequestFailed as error:
            raise self._refusal(error.response.status_code, self._text(error.response.content)) from None
        except GitHubException as error:
            cause = getattr(error, "exc", error)
            raise Unavailable(f"no answer from GitHub: {type(cause).__name__}") from None
        except ValueError as error:  # a Retry-After that is no number
            raise self._limited(PAUSE, f"GitHub asks to wait, unreadably: {error}") from None

    def _refusal(self, status: int, text: str) -> Exception:
        """What an HTTP status without a rate limit's headers means."""
        if status == _TOO_MANY or (status == _FORBIDDEN and re.search("rate limit|abuse", text, re.IGNORECASE)):
            return self._limited(PAUSE, text)
        if status in (_UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND):
            return Denied(self._name, f"GitHub answered {status}: {text}", "give the source a token that is valid and may read this repository")
        return Unavailable(f"GitHub answered {status}: {text}")

    def _error(self, said: dict[str, Any], headers: httpx.Headers, after: str | None) -> Exception:
        """What `errors` of an answer mean; whatever stands in `data` beside them is not whole."""
        errors = [e for e in said["errors"] if isinstance(e, dict)] if isinstance(said["errors"], list) else []
        kinds = {str(e.get("type")) for e in errors}
        text = self._text(str(errors[0].get("message") if errors else said["errors"]).encode("utf-8", "replace"))
        path = errors[0].get("path") if errors else None
        where = ".".join(str(p) for p in path) if isinstance(path, list) else ""
        missing = any(e.get("type") == "NOT_FOUND" and e.get("path") in (None, ["repository"]) for e in errors)
        if kinds & _RATE or "secondary rate limit" in text.lower():
            return self._limited(_wait(headers), text)
        if "INVALID_CURSOR_ARGUMENTS" in kinds and after:
            return LostCursor(text)
        if missing or kinds & _NO:
            return Denied(self._name, f"GitHub refuses {where or 'the query'}: {text}", "is the name right, and may this token read it?")
        if kinds & _ASKED_WRONG or ("data" not in said and any(e.get("locations") for e in errors)):
            return Denied(self._name, f"GitHub refuses the query: {text}", "correct `fields` of this source")
        return Unavailable(f"GitHub answered in part{f' ({where})' if where else ''}: {text}")

    def _page(self, data: Any, after: str | None, at: dt.datetime) -> Pulls:
        found = _mapping(_mapping(_mapping(data).get("repository")).get("pullRequests"))
        nodes, info = found.get("nodes"), _mapping(found.get("pageInfo"))
        if not isinstance(nodes, list) or not isinstance(info.get("hasNextPage"), bool):
            raise Unavailable("GitHub's answer holds no page of pull requests")
        if not all(isinstance(n, dict) for n in nodes):
            raise Unavailable(f"GitHub answered in part: {sum(not isinstance(n, dict) for n in nodes)} of {len(nodes)} pull requests are missing")
        more, cursor = info["hasNextPage"], info["endCursor"] if isinstance(info.get("endCursor"), str) else None
        if more and cursor in (None, after):
            raise Unavailable("GitHub says that there is more, but not where")
        total = found.get("totalCount")
        return Pulls(nodes, cursor or after, more, total if isinstance(total, int) else None, self._quotas(_mapping(data).get("rateLimit")), at)

    def _quotas(self, rate: Any) -> tuple[Quota, ...]:
        """None where the server counts nothing, e.g. an Enterprise Server without rate limits."""
        rate = _mapping(rate)
        try:
            return (Quota(self._limit, float(rate["remaining"]), float(rate["limit"]), moment(rate["resetAt"])),)
        except (KeyError, TypeError, ValueError, Defect):
            return ()

    def _limited(self, seconds: float, reason: str) -> Limited:
        return Limited(self._limit, round(min(max(seconds, 1.0), LONGEST), 1), reason)

    def _text(self, content: bytes) -> str:
        """The message of an answer, short and without our token."""
        said = _json(content)
        text = str(said["message"]) if isinstance(said, dict) and "message" in said else content[:1200].decode("utf-8", "replace")
        return text.replace(self._token.get_secret_value() or "\0", "***")[:300]


def _json(content: bytes) -> Any:
    """The value, also where it has what orjson refuses (a lone surrogate, say); None where it is no JSON."""
    try:
        return orjson.loads(content)
    except ValueError:
        pass
    try:
        return json.loads(content.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError):
        return None


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _clock(headers: httpx.Headers) -> dt.datetime:
    """What time it is at the service; ours where it does not say."""
    try:
        return email.utils.parsedate_to_datetime(headers.get("date", "")).astimezone(dt.UTC)
    except (ValueError, OverflowError):
        return dt.datetime.now(dt.UTC)


def _wait(headers: httpx.Headers) -> float:
    """Seconds until a limit ends: Retry-After, else the reset of the budget."""
    wait, reset = headers.get("retry-after", ""), headers.get("x-ratelimit-reset", "")
    if _WHOLE.fullmatch(wait):
        return float(wait)
    return float(reset) - _clock(headers).timestamp() if _WHOLE.fullmatch(reset) else PAUSE
