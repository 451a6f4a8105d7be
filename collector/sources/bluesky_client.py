"""XRPC calls to a host, without credentials: what it refuses is told apart, what is left of its limit is kept."""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncGenerator
from contextlib import aclosing
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import httpx
import orjson

from collector.sources.answers import Denied, Limited, Quota
from collector.sources.bluesky_values import loaded
from worker.core.errors import Misconfigured, Unavailable

MOST = 64_000_000  # bytes of an answer that is read as a whole
PAUSE = 60.0  # seconds, where a host limits us and does not say for how long
GONE = {  # errors that say how the account stands, as `status` of #account does
    "RepoTakendown": "takendown", "RepoSuspended": "suspended", "RepoDeactivated": "deactivated", "RepoNotFound": "deleted",
}  # fmt: skip
_TIMEOUT = httpx.Timeout(30.0, read=60.0)


class Gone(Exception):
    """The host does not give the repository; `status` says why, `at` is the host's time."""

    def __init__(self, host: str, error: str, message: str, at: dt.datetime) -> None:
        super().__init__(f"{host} does not give the repository: {error}: {message}"[:300])
        self.status = GONE[error]
        self.at = at


class Missing(Exception):
    """The host does not know what was asked for."""


def host_of(url: str) -> str:
    """Name and port, without what may stand before them."""
    return urlsplit(url).netloc.rpartition("@")[2]


class Client:
    """Calls of one source. The connection is opened at the first one."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._http: httpx.AsyncClient | None = None
        self._quotas: dict[str, Quota] = {}
        self.now = dt.datetime.now(dt.UTC)  # of the host that answered last

    @property
    def quotas(self) -> tuple[Quota, ...]:
        """What answers told since this was last asked."""
        told, self._quotas = self._quotas, {}
        return tuple(told.values())

    async def call(self, base: str, method: str, **params: Any) -> Any:
        """The JSON of an answer."""
        return await self.json(f"{base}/xrpc/{method}", params)

    async def json(self, url: str, params: dict[str, Any]) -> Any:
        """The same of any address."""
        async with aclosing(self.stream(url, params, MOST)) as parts:
            body = b"".join([part async for part in parts])
        try:
            return loaded(body)
        except ValueError as error:
            raise Unavailable(f"{host_of(url)} answered {urlsplit(url).path} with what is no JSON: {error}") from error

    async def stream(self, url: str, params: dict[str, Any], most: int) -> AsyncGenerator[bytes, None]:
        """The bytes of an answer as they come; where it ends early, or is larger than `most`, it raises."""
        if urlsplit(url).scheme not in ("http", "https"):
            raise Misconfigured(f"sources.{self._name}: {url!r} is no address of a host", "it begins with https:// or http://")
        if self._http is None:
            self._http = httpx.AsyncClient(timeout=_TIMEOUT, follow_redirects=True, headers={"user-agent": "tailrace"})
        size, asked = 0, {k: str(v).lower() if isinstance(v, bool) else v for k, v in params.items() if v is not None}
        try:
            async with self._http.stream("GET", url, params=asked) as answer:
                self._note(answer)
                if answer.is_error:
                    await answer.aread()
                    self._refuse(answer)
                async for part in answer.aiter_bytes():
                    size += len(part)
                    if size > most:
                        raise Unavailable(f"{host_of(url)} sends more than {most} bytes", "raise max_repo_bytes where the repository is that large")
                    yield part
        except httpx.HTTPError as error:
            raise Unavailable(f"{host_of(url)} cannot be read: {error!r}"[:300]) from error

    async def aclose(self) -> None:
        if self._http is not None:
            await self._http.aclose()
            self._http = None

    def _note(self, answer: httpx.Response) -> None:
        told = answer.headers
        self.now = date_of(told)
        try:
            name, remaining, limit = limit_of(str(answer.url)), float(told["ratelimit-remaining"]), float(told["ratelimit-limit"])
            self._quotas[name] = Quota(name, remaining, limit, dt.datetime.fromtimestamp(float(told["ratelimit-reset"]), dt.UTC))
        except (KeyError, ValueError, OverflowError, OSError):
            return

    def _refuse(self, answer: httpx.Response) -> None:
        """Raises what an answer other than success means."""
        host, status = host_of(str(answer.url)), answer.status_code
        error, message = _error_of(answer)
        if status == httpx.codes.TOO_MANY_REQUESTS:
            raise Limited(limit_of(str(answer.url)), pause_of(answer.headers), f"{host}: {error}: {message}")
        if error in GONE:
            raise Gone(host, error, message, date_of(answer.headers))
        if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            raise Denied(self._name, f"{host} answers {status}: {error}: {message}"[:300], "the host gives this to nobody without an account")
        if status in (httpx.codes.BAD_REQUEST, httpx.codes.NOT_FOUND, httpx.codes.GONE):
            raise Missing(f"{host} answers {status}: {error}: {message}"[:300])
        raise Unavailable(f"{host} answers {status}: {error}: {message}"[:300])


def limit_of(url: str) -> str:
    """The name of the limit that a host sets us."""
    return f"bluesky:{host_of(url)}"


def date_of(headers: Any) -> dt.datetime:
    """The time of the host that answered; ours where it tells none."""
    try:
        return parsedate_to_datetime(headers["date"]).astimezone(dt.UTC)
    except (KeyError, ValueError, TypeError, OverflowError):
        return dt.datetime.now(dt.UTC)


def pause_of(headers: Any) -> float:
    """Seconds for which a host wants to be let alone."""
    try:
        if "retry-after" in headers:
            return max(0.1, float(headers["retry-after"]))
        return max(0.1, float(headers["ratelimit-reset"]) - date_of(headers).timestamp())
    except (KeyError, ValueError):
        return PAUSE


def _error_of(answer: httpx.Response) -> tuple[str, str]:
    try:
        said = orjson.loads(answer.content)
        return str(said.get("error", "")), str(said.get("message", ""))
    except (orjson.JSONDecodeError, AttributeError):
        return "", answer.text[:100]
