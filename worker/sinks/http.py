"""What HTTP sinks share: which failures are surely not sent, which are ambiguous, which are final."""

from __future__ import annotations

import email.utils
import time
from collections.abc import Callable
from typing import Literal

import httpx

from worker.core.models import Receipt

_AGAIN = frozenset({408, 425, 429, 503})  # refused before anything was done
_SURELY_NOT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol)


def retry_after(response: httpx.Response) -> float | None:
    """Seconds of the Retry-After header, which is a number or a date."""
    value = response.headers.get("retry-after", "")
    if value.isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


async def post(
    client: httpx.AsyncClient, url: str, content: bytes, headers: dict[str, str], policy: str, sent: Callable[[httpx.Response], Receipt], shown: str
) -> Receipt:
    """One POST. An ambiguous failure is `uncertain` under never_twice and tried again otherwise. `shown`: the address without secrets."""
    ambiguous: Literal["uncertain", "retry"] = "uncertain" if policy == "never_twice" else "retry"
    try:
        response = await client.post(url, content=content, headers=headers)
    except _SURELY_NOT as error:
        return Receipt("retry", detail=f"no connection to {shown}: {type(error).__name__}")
    except httpx.HTTPError as error:
        return Receipt(ambiguous, detail=f"no answer from {shown}: {type(error).__name__}")
    if response.is_success:
        return sent(response)
    detail = f"{shown} answered {response.status_code}: {response.text[:300]}"
    if response.status_code in _AGAIN:
        return Receipt("retry", detail=detail, after=retry_after(response))
    if response.is_server_error:
        return Receipt(ambiguous, detail=detail, after=retry_after(response))
    return Receipt("failed", detail=detail)
