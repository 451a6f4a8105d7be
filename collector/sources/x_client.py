"""What X's API v2 says over HTTP: tweepy's client makes the calls, over a transport of ours; every refusal becomes one of our errors."""

from __future__ import annotations

import datetime as dt
import time
from http import HTTPStatus
from typing import Any, NamedTuple

import aiohttp
from pydantic import SecretStr
from tweepy.asynchronous import AsyncClient

from collector.sources.answers import Denied, Limited, Quota
from collector.sources.x_posts import Malformed, members, value
from worker.core.errors import Unavailable

_TIME = aiohttp.ClientTimeout(total=60, connect=15)
_MOST = 32_000_000  # bytes of an answer; a hundred posts with all that comes along have less than one million
_WINDOW, _CAP = 300.0, 3600.0  # seconds to wait where a limit does not say how long; where a cap of X's own is used up
_LONGEST = 86_400.0
_SHORTEST = 6  # hiding a shorter text would only spoil the message
_AGAIN = "tried again by itself"
_DENIED: dict[int, str] = {
    HTTPStatus.BAD_REQUEST: "mend the query or the options of this source",
    HTTPStatus.UNAUTHORIZED: "see whether the token is right",
    HTTPStatus.PAYMENT_REQUIRED: "buy credits in X's developer console",
    HTTPStatus.FORBIDDEN: "see whether the app of this token may read this",
    HTTPStatus.NOT_FOUND: "see whether the account and base_url are right",
}
_OURS = frozenset({"since_id", "until_id", "start_time", "end_time", "pagination_token", "next_token"})  # parameters that no person has set


class Answer(NamedTuple):
    """An answer as it came."""

    status: int
    headers: dict[str, str]
    text: str


class Transport(AsyncClient):  # type: ignore[misc]  # tweepy has no types
    """tweepy's client with another way to the service: an address that can be chosen, a session that is closed, answers as they came.

    tweepy's own way reads every refusal as JSON, also a proxy's HTML page, and logs the token at level debug.
    """

    def __init__(self, token: SecretStr, base_url: str) -> None:
        super().__init__(return_type=aiohttp.ClientResponse, wait_on_rate_limit=False)  # the type that it hands on untouched
        self.session: aiohttp.ClientSession | None = None
        self._token = token
        self._base = base_url.rstrip("/")

    async def request(self, method: str, route: str, params: Any = None, json: Any = None, user_auth: bool = False) -> Answer:
        if self.session is None:
            self.session = aiohttp.ClientSession(timeout=_TIME, trust_env=True, cookie_jar=aiohttp.DummyCookieJar())
        headers = {"User-Agent": self.user_agent, "Authorization": f"Bearer {self._token.get_secret_value()}"}
        async with self.session.request(method, self._base + route, params=params, headers=headers, allow_redirects=False) as response:
            body = bytearray()
            async for part in response.content.iter_chunked(65_536):
                body += part
                if len(body) > _MOST:
                    raise Malformed(f"an answer of more than {_MOST} bytes")
            lowered = {name.lower(): text for name, text in response.headers.items()}
            return Answer(response.status, lowered, body.decode("utf-8", "surrogateescape"))

    async def aclose(self) -> None:
        if self.session is not None:
            await self.session.close()
            self.session = None


class Client:
    """Calls for one source. `op` names a call in limits and messages: user, timeline, search."""

    def __init__(self, source: str, token: SecretStr, base_url: str) -> None:
        self._source = source
        self._token = token
        self._base = base_url
        self._transport = Transport(token, base_url)
        self.aclose = self._transport.aclose

    async def user(self, handle: str) -> tuple[str, int | None]:
        """The id of an account, and how many posts it has."""
        found, _ = await self._ask("user", self._transport.get_user(username=handle, user_fields=["public_metrics"]))
        user = value(found, "data")
        if not isinstance(user, dict) or not isinstance(user.get("id"), str):
            raise Unavailable(f"X tells no id of {handle!r}", _AGAIN)
        metrics = user.get("public_metrics")
        count = metrics.get("tweet_count") if isinstance(metrics, dict) else None
        return user["id"], count if isinstance(count, int) else None

    async def timeline(self, user: str, **asked: Any) -> tuple[dict[str, str], tuple[Quota, ...]]:
        """One page of an account's posts: the members of the answer, and what is left of the limit."""
        return await self._ask("timeline", self._transport.get_users_tweets(user, **asked))

    async def search(self, query: str, **asked: Any) -> tuple[dict[str, str], tuple[Quota, ...]]:
        """One page of the posts of the last seven days that match."""
        return await self._ask("search", self._transport.search_recent_tweets(query, **asked))

    async def _ask(self, op: str, call: Any) -> tuple[dict[str, str], tuple[Quota, ...]]:
        try:
            answer: Answer = await call
            found = members(answer.text) if 200 <= answer.status < 300 else {}  # noqa: PLR2004  success
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unavailable(f"no answer from {self._base}: {type(error).__name__}", _AGAIN) from None
        except Malformed as error:
            raise Unavailable(f"X's answer ({op}) is broken: {error}", _AGAIN) from None
        if not found:
            raise self._refusal(op, answer)
        if "data" not in found and "meta" not in found:
            raise Denied(self._source, _words(found, answer.text, self._token), "see whether the account or query is right and may be read")
        return found, _quotas(op, answer.headers)

    def _refusal(self, op: str, answer: Answer) -> Exception:
        """What an answer without success means."""
        try:
            found = members(answer.text)
        except Malformed:
            found = {}
        said = f"X answered {answer.status} ({op}): {_words(found, answer.text, self._token)}"
        if answer.status == HTTPStatus.TOO_MANY_REQUESTS:
            capped = "usage-capped" in found.get("type", "") or "UsageCapExceeded" in found.get("title", "")
            return Limited(f"x:{op}", _CAP if capped else _seconds(answer.headers), said)
        named = _parameters(found)
        if answer.status in _DENIED and not (named and named <= _OURS):
            return Denied(self._source, said, _DENIED[answer.status])
        return Unavailable(said, _AGAIN)


def _words(found: dict[str, str], text: str, token: SecretStr) -> str:
    """The service's own words, without the token should it repeat it."""
    problems = value(found, "errors")
    problems = [p for p in problems if isinstance(p, dict)] if isinstance(problems, list) else []
    said = [str(p.get("detail") or p.get("message") or p.get("title")) for p in problems]
    said += [str(told) for name in ("detail", "title") if not said and (told := value(found, name))]
    told = "; ".join(dict.fromkeys(said)) or " ".join(text.split()) or "nothing"
    hidden = token.get_secret_value()
    return (told.replace(hidden, "***") if len(hidden) >= _SHORTEST else told)[:300]


def _parameters(found: dict[str, str]) -> set[str]:
    """Parameters that a refusal names."""
    problems = value(found, "errors")
    named = [p.get("parameters") for p in problems if isinstance(p, dict)] if isinstance(problems, list) else []
    return {name for names in named if isinstance(names, dict) for name in names}


def _number(headers: dict[str, str], name: str) -> int | None:
    told = headers.get(f"x-rate-limit-{name}", "")
    return int(told) if told.isascii() and told.isdigit() and len(told) < 12 else None  # noqa: PLR2004  no sensible number is longer


def _seconds(headers: dict[str, str]) -> float:
    """Until the limit is lifted: at least one, so that clocks that differ make no busy loop."""
    reset = _number(headers, "reset")
    return min(max(reset - time.time(), 1.0), _LONGEST) if reset else _WINDOW


def _quotas(op: str, headers: dict[str, str]) -> tuple[Quota, ...]:
    remaining, limit, reset = (_number(headers, name) for name in ("remaining", "limit", "reset"))
    if remaining is None:
        return ()
    return (Quota(f"x:{op}", remaining, limit, dt.datetime.fromtimestamp(reset, dt.UTC) if reset else None),)
