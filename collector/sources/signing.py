"""Who may call a webhook: options, secret, size and signature of a call."""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from collections.abc import AsyncGenerator
from typing import Literal

from pydantic import Field, SecretStr
from starlette.requests import Request

from collector.record import RecordOptions
from collector.sources.secrets import secret
from worker.core.errors import Misconfigured
from worker.core.specs import Seconds

_STAMP = re.compile(r"[0-9]{1,12}")
_LENGTH = re.compile(r"[0-9]{1,18}")


class WebhookOptions(RecordOptions):
    """`[sources.NAME]` of kind webhook."""

    secret_env: str | None = Field(None, description="environment variable that holds the shared secret")
    secret_file: str | None = Field(None, description="file that holds the shared secret")
    insecure: bool = Field(False, description="take unsigned calls")
    signature: Literal["tailrace", "github"] = Field(
        "tailrace", description="tailrace: over `timestamp.body`; github: X-Hub-Signature-256 over the body"
    )
    signature_header: str = "X-Tailrace-Signature"
    timestamp_header: str = "X-Tailrace-Timestamp"
    tolerance: Seconds = Field(300.0, description="how far the timestamp may be from now")
    max_bytes: int = Field(1_000_000, ge=1, description="a larger body is refused with 413")
    split: bool = Field(False, description="a JSON array is one record per element")


class Refused(Exception):
    def __init__(self, status: int, reason: str, message: str) -> None:
        """`status` of HTTP, `reason` in a word or two, `message` for the caller."""
        super().__init__(message)
        self.status, self.reason = status, reason


def secret_of(name: str, options: WebhookOptions) -> SecretStr | None:
    found = secret(name, "the shared secret", options.secret_env, options.secret_file)
    if found is None and not options.insecure:
        raise Misconfigured(f"sources.{name}: a webhook needs a secret", "set secret_env or secret_file; `insecure = true` takes unsigned calls")
    return found


async def parts(request: Request, most: int) -> AsyncGenerator[bytes, None]:
    """The body, as long as it is not too large: also one whose length is not told beforehand. Raises Refused."""
    length, told = 0, request.headers.get("content-length", "0")
    async for part in request.stream():
        length += len(part)
        if length > most or not _LENGTH.fullmatch(told) or int(told) > most:
            raise Refused(413, "too large", f"a body may have {most} bytes")
        yield part


def check_signature(request: Request, body: bytes, options: WebhookOptions, secret: SecretStr | None) -> None:
    """Raises Refused unless the body, and with it the time of sending, is signed with our secret."""
    if secret is None:
        return
    signed, header = body, "X-Hub-Signature-256"
    if options.signature == "tailrace":
        header = options.signature_header
        stamp = request.headers.get(options.timestamp_header, "")
        if not _STAMP.fullmatch(stamp) or abs(time.time() - int(stamp)) > options.tolerance:
            raise Refused(401, "timestamp", f"{options.timestamp_header} must be the present time in Unix seconds")
        signed = stamp.encode() + b"." + body
    wanted = "sha256=" + hmac.new(secret.get_secret_value().encode(), signed, hashlib.sha256).hexdigest()
    if not hmac.compare_digest(wanted.encode(), request.headers.get(header, "").encode()):
        raise Refused(401, "signature", f"{header} does not match")
