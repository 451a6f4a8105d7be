"""What HTTP sinks share: which failures are surely not sent, which are ambiguous, which are final; and that no message shows a secret."""

from __future__ import annotations

import email.utils
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import httpx
import orjson
from pydantic import SecretStr

from worker.core.errors import Misconfigured
from worker.core.models import Receipt

_AGAIN = frozenset({401, 408, 425, 429, 503})  # refused before anything was done; 401 is about our credentials, not about this delivery
_SURELY_NOT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol)
_MOST = 65536  # bytes of an answer that are looked at
_LONGEST = 86400.0
_SHORTEST_SECRET = 6  # hiding a shorter text would only spoil the message


@dataclass(frozen=True, slots=True)
class Answer:
    """What a receiver said. `content` is cut short where it is long or the connection broke."""

    status: int
    headers: httpx.Headers
    content: bytes

    @property
    def json(self) -> dict[str, Any]:
        """The JSON object of the body; empty where it is none."""
        try:
            found = orjson.loads(self.content)
        except orjson.JSONDecodeError:
            return {}
        return found if isinstance(found, dict) else {}


def from_env(kind: str, name: str) -> SecretStr:
    """A credential. Raises Misconfigured where it is not set."""
    value = os.environ.get(name, "").strip()
    if not value:
        raise Misconfigured(
            f"effects.{kind}: the environment variable {name} is not set", "the gate of this kind is open, so its credential is needed"
        )
    return SecretStr(value)


def ambiguous(policy: str) -> Literal["uncertain", "retry"]:
    """What an unknown outcome means: never_twice waits for a person, the others try again."""
    return "uncertain" if policy == "never_twice" else "retry"


def bounded(seconds: Any) -> float | None:
    """A receiver's wish to wait, at most a day; None where it is no number of seconds."""
    return min(max(float(seconds), 0.0), _LONGEST) if isinstance(seconds, (int, float)) else None


def retry_after(headers: httpx.Headers) -> float | None:
    """Seconds of the Retry-After header, which is a number or a date."""
    value = headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return bounded(int(value[:9]))
    try:
        return bounded(email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


class Receiver:
    """One address that is posted to. `shown` names it in messages, in which none of `secrets` appears."""

    def __init__(self, shown: str, timeout: float, secrets: list[str]) -> None:
        self._shown = shown
        self._secrets = [s for s in secrets if len(s) >= _SHORTEST_SECRET]
        self._client = httpx.AsyncClient(timeout=timeout, follow_redirects=False, headers={"accept-encoding": "identity"})
        self.close = self._client.aclose

    async def post(
        self, url: str, content: bytes, headers: dict[str, str], policy: str, read: Callable[[Answer, Receipt], Receipt],
        method: str = "POST", most: int = _MOST,
    ) -> Receipt:  # fmt: skip
        """One POST. `read` corrects the usual receipt by what the answer says. An ambiguous failure is `uncertain` under never_twice.
        Another `method` may be one that does no harm twice: then its policy is `idempotent`. `most` bytes of the answer are looked at.
        """
        try:
            answer = await self._ask(method, url, content, headers, most)
        except _SURELY_NOT as error:
            return Receipt("retry", detail=f"no connection to {self._shown}: {type(error).__name__}")
        except (httpx.InvalidURL, httpx.LocalProtocolError, UnicodeError) as error:
            return Receipt("failed", detail=f"{self._shown} cannot be asked like this: {type(error).__name__}")
        except httpx.HTTPError as error:
            return Receipt(ambiguous(policy), detail=f"no answer from {self._shown}: {type(error).__name__}")
        return read(answer, self._usual(answer, policy))

    async def _ask(self, method: str, url: str, content: bytes, headers: dict[str, str], most: int) -> Answer:
        body = bytearray()
        async with self._client.stream(method, url, content=content, headers=headers) as response:
            try:
                async for part in response.aiter_bytes():
                    body += part[: most - len(body)]
                    if len(body) == most:
                        break
            except httpx.HTTPError:
                return Answer(response.status_code, response.headers, bytes(body))
        return Answer(response.status_code, response.headers, bytes(body))

    def _usual(self, answer: Answer, policy: str) -> Receipt:
        if httpx.codes.is_success(answer.status):
            return Receipt("sent")
        detail = f"{self._shown} answered {answer.status}: {self.hidden(answer.content[:1200].decode('utf-8', 'replace'))[:300]}"
        if answer.status in _AGAIN:
            return Receipt("retry", detail=detail, after=retry_after(answer.headers))
        if httpx.codes.is_server_error(answer.status):
            return Receipt(ambiguous(policy), detail=detail, after=retry_after(answer.headers))
        return Receipt("failed", detail=detail)

    def hidden(self, text: str) -> str:
        """A receiver may answer with what it was sent."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text
