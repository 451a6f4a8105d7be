"""A conditional GET: redirects by hand, because permanent ones are remembered, and no more bytes than are allowed."""

from __future__ import annotations

import asyncio
import email.utils
import functools
import re
import ssl
import time
from typing import Any, NamedTuple

import httpx
from pydantic import SecretStr

from collector.sources.answers import Denied, Limited
from worker.core.errors import Misconfigured, Unavailable

HOPS = 5
_TOTAL, _STEP = 120.0, 30.0  # seconds for all of it; for one step, e.g. the next bytes
_LONGEST, _USUAL = 86_400.0, 900.0  # seconds to wait at most, and where a refusal does not say
_MAX_AGE = re.compile(r"(?:^|,)\s*max-age\s*=\s*\"?(\d{1,9})", re.IGNORECASE)
_ACCEPT = "application/atom+xml, application/rss+xml, application/xml;q=0.9, */*;q=0.5"
_AGAIN = "tried again by itself"


class Answer(NamedTuple):
    """200 or 304. `moved`: where the feed is for good, by permanent redirects alone."""

    status: int
    moved: str | None
    headers: httpx.Headers
    body: bytes

    @property
    def max_age(self) -> float:
        """Seconds for which the answer may be taken for the present one."""
        found = _MAX_AGE.search(self.headers.get("cache-control", ""))
        return float(found[1]) if found else 0.0


class Client:
    """Asks for the documents of one feed. `shown` names it in messages: its address may be a secret. `home`: who may see its login."""

    def __init__(self, source: str, shown: str, home: httpx.URL, agent: str, authorization: SecretStr | None, most: int) -> None:
        self._source, self._shown, self._most = source, shown, most
        self._home = _origin(home)
        self._headers = {
            "user-agent": agent,
            "accept": "application/atom+xml, application/rss+xml, application/xml;q=0.9, */*;q=0.5",
            "accept-encoding": "gzip",
        }
        self._authorization = authorization

    async def get(self, url: str, validators: dict[str, str]) -> Answer:
        """Raises Limited, Denied or Unavailable for every other answer."""
        try:
            async with asyncio.timeout(_TOTAL), httpx.AsyncClient(verify=_tls(), timeout=_STEP, headers=self._headers) as client:
                return await self._follow(client, httpx.URL(url), validators)
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, OSError, ValueError) as error:
            raise Unavailable(f"no answer from {self._shown}: {type(error).__name__}", _AGAIN) from None

    async def _follow(self, client: httpx.AsyncClient, url: httpx.URL, validators: dict[str, str]) -> Answer:
        moved, permanent = None, True
        for _ in range(HOPS):
            secret = {"authorization": self._authorization.get_secret_value()} if self._authorization and _origin(url) == self._home else {}
            async with client.stream("GET", url, headers={**validators, **secret}) as response:
                if not response.has_redirect_location:
                    return await self._answer(response, moved, asked=bool(validators))
                url = response.url.join(response.headers["location"])
                if url.scheme not in {"http", "https"}:
                    raise Unavailable(f"{self._shown} leads to an address that is not on the web", _AGAIN)
                permanent = permanent and response.status_code in {httpx.codes.MOVED_PERMANENTLY, httpx.codes.PERMANENT_REDIRECT}
                moved = str(url) if permanent else moved
        raise Unavailable(f"{self._shown} leads on and on: more than {HOPS} redirects", _AGAIN)

    async def _answer(self, response: httpx.Response, moved: str | None, *, asked: bool) -> Answer:
        if response.status_code == httpx.codes.NOT_MODIFIED and asked:
            return Answer(response.status_code, moved, response.headers, b"")
        if response.status_code == httpx.codes.OK:
            return Answer(response.status_code, moved, response.headers, await self._body(response))
        raise self._refusal(response)

    async def _body(self, response: httpx.Response) -> bytes:
        if response.headers.get("content-encoding", "identity").lower() not in {"identity", "gzip", "x-gzip", "deflate", ""}:
            raise Unavailable(f"{self._shown} is packed in a way that nobody asked for", _AGAIN)
        body = bytearray()
        async for part in response.aiter_bytes():
            body += part
            if len(body) > self._most:
                raise Unavailable(f"{self._shown} is larger than max_bytes = {self._most}", "raise max_bytes if that is right")
        return bytes(body)

    def _refusal(self, response: httpx.Response) -> Exception:
        status, after = response.status_code, _retry_after(response.headers)
        said = f"{self._shown} answered {status}"
        if status == httpx.codes.TOO_MANY_REQUESTS or (status == httpx.codes.SERVICE_UNAVAILABLE and after is not None):
            return Limited(limit_of(self._shown), _USUAL if after is None else after, said)
        if status == httpx.codes.GONE:
            return Denied(self._source, f"{said}: the feed is gone for good", "take it out of the configuration, or find where it is now")
        if status in {httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN}:
            return Denied(self._source, said, "it needs a login (authorization_env, authorization_file), or does not like us (user_agent)")
        return Unavailable(said, _AGAIN)


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def checked(name: str, address: str) -> httpx.URL:
    """The address of a feed. Raises Misconfigured."""
    try:
        url = httpx.URL(address)
    except (httpx.InvalidURL, ValueError):
        url = httpx.URL("")
    if url.scheme not in {"http", "https"} or not url.host:
        raise Misconfigured(f"sources.{name}: that is no address of a feed", "rss:https://example.org/feed.xml, or url_env where it is a secret")
    if url.userinfo:
        raise Misconfigured(f"sources.{name}: a password in an address is seen by everybody", "use authorization_env, or url_env")
    return url


def joined(url: str, following: Any) -> str:
    """The address that a document at `url` links to; empty for none."""
    try:
        found = httpx.URL(url).join(following) if isinstance(following, str) and following else None
    except (httpx.InvalidURL, ValueError):
        return ""
    return str(found) if found and found.scheme in {"http", "https"} else ""


def limit_of(shown: str) -> str:
    """One limit for each host."""
    return f"rss:{shown.partition('/')[0]}"


@functools.cache
def _tls() -> ssl.SSLContext:
    return httpx.create_ssl_context()


def _retry_after(headers: httpx.Headers) -> float | None:
    """Seconds of the Retry-After header, which is a number or a date; at least one, a day at most."""
    told = headers.get("retry-after", "").strip()
    try:
        seconds = float(int(told[:9])) if told.isascii() and told.isdigit() else email.utils.parsedate_to_datetime(told).timestamp() - time.time()
    except (ValueError, OverflowError):
        return None
    return min(max(seconds, 1.0), _LONGEST)
