"""webhook: HTTP POST to /webhook/NAME, signed, answered 202 only after commit."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any, Literal

import orjson
from pydantic import Field, SecretStr
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from collector.record import Builder, RecordOptions, short
from collector.sources import Page, source
from worker.core.db import AWAY
from worker.core.errors import Misconfigured
from worker.core.events import emit
from worker.core.models import RawRecord
from worker.core.settings import CollectorSettings, Seconds

_NOTHING: tuple[Page, ...] = ()
WAITING = 2000  # calls that may wait for their commit; the next is asked to come back


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


class _Refused(Exception):
    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status, self.reason = status, reason


def secret_of(name: str, options: WebhookOptions) -> SecretStr | None:
    if options.secret_env:
        if value := os.environ.get(options.secret_env):
            return SecretStr(value)
        raise Misconfigured(f"sources.{name}: the environment variable {options.secret_env} is not set", "it must hold the shared secret")
    if options.secret_file:
        try:
            return SecretStr(Path(options.secret_file).read_text().strip())
        except OSError as error:
            raise Misconfigured(f"sources.{name}: cannot read secret_file: {error}", "it must hold the shared secret") from error
    if not options.insecure:
        raise Misconfigured(f"sources.{name}: a webhook needs a secret", "set secret_env or secret_file; `insecure = true` takes unsigned calls")
    return None


@source("webhook", WebhookOptions)
class Webhook:
    """Calls that come while a commit is on its way go together into the next page."""

    def __init__(self, name: str, options: WebhookOptions, settings: CollectorSettings) -> None:
        self.name = name
        self.caught_up = True
        self._o = options
        self._page_records = settings.page_records
        self._secret = secret_of(name, options)
        self._builder = Builder(options)
        self._waiting: list[tuple[list[RawRecord], asyncio.Future[dict[str, Any]]]] = []
        self._arrived = asyncio.Event()

    def describe(self) -> str:
        return f"POST /webhook/{self.name.partition(':')[2]} ({'signed' if self._secret else 'UNSIGNED'})"

    async def tail(self, position: dict[str, Any], stop: asyncio.Event) -> AsyncGenerator[Page, None]:
        """Nothing to read: calls come by `routes`."""
        await stop.wait()
        for page in _NOTHING:
            yield page

    async def fetch(self, position: dict[str, Any]) -> AsyncGenerator[Page, None]:
        """A webhook has no history that could be asked for."""
        for page in _NOTHING:
            yield page

    def routes(self, append: Callable[[Page], Any]) -> list[BaseRoute]:
        async def post(request: Request) -> Response:
            try:
                records = self._records(request, await self._body(request))
                facts = await self._commit(records)
            except _Refused as refused:
                emit("webhook.refused", source=self.name, reason=refused.reason, status=refused.status)
                headers = {"Retry-After": "5"} if refused.status == 503 else {}  # noqa: PLR2004  Service Unavailable
                return JSONResponse({"error": str(refused), "reason": refused.reason}, refused.status, headers)
            return JSONResponse({"accepted": len(records), **facts}, 202)

        self._append = append
        return [Route(f"/webhook/{self.name.partition(':')[2]}", post, methods=["POST"])]

    async def _body(self, request: Request) -> bytes:
        too_large = _Refused(413, "too large", f"a body may have {self._o.max_bytes} bytes")
        if int(request.headers.get("content-length") or 0) > self._o.max_bytes:
            raise too_large
        body = bytearray()
        try:
            async for part in request.stream():
                body += part
                if len(body) > self._o.max_bytes:
                    raise too_large
        except ClientDisconnect:
            raise _Refused(400, "cut off", "the body ended early") from None
        self._check_signature(request, bytes(body))
        return bytes(body)

    def _check_signature(self, request: Request, body: bytes) -> None:
        if self._secret is None:
            return
        signed = body
        header = "X-Hub-Signature-256"
        if self._o.signature == "tailrace":
            header = self._o.signature_header
            stamp = request.headers.get(self._o.timestamp_header, "")
            if not stamp.isdigit() or abs(time.time() - int(stamp)) > self._o.tolerance:
                raise _Refused(401, "timestamp", f"{self._o.timestamp_header} must be the present time in Unix seconds")
            signed = stamp.encode() + b"." + body
        wanted = "sha256=" + hmac.new(self._secret.get_secret_value().encode(), signed, hashlib.sha256).hexdigest()
        if not hmac.compare_digest(wanted.encode(), request.headers.get(header, "").encode()):
            raise _Refused(401, "signature", f"{header} does not match")

    def _records(self, request: Request, body: bytes) -> list[RawRecord]:
        if not body.strip():
            raise _Refused(400, "empty", "there is no body")
        meta = {"content_type": request.headers.get("content-type", "")}
        if event := request.headers.get("x-github-event"):
            meta |= {"event": event}
        parts = [body]
        if self._o.split and body.lstrip().startswith(b"["):
            try:
                parts = [orjson.dumps(part) for part in orjson.loads(body)]
            except orjson.JSONDecodeError:
                raise _Refused(400, "not JSON", "the body is not a JSON array") from None
        records = [self._builder.build(part, meta) for part in parts]
        key = request.headers.get("idempotency-key") or request.headers.get("x-github-delivery")
        if key and len(records) == 1 and not self._o.id_field:
            r = records[0]
            records = [RawRecord(short(key), r.digest, r.payload, r.body, r.op, r.occurred_at, r.source_time, r.meta)]
        return records

    async def _commit(self, records: list[RawRecord]) -> dict[str, Any]:
        if len(self._waiting) >= WAITING:
            raise _Refused(503, "busy", "too many calls wait; come back in some seconds")
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting.append((records, answer))
        self._arrived.set()
        return await answer

    async def step(self) -> float:
        """Writes what waits as one page and answers all of it; run by the collector as a service of its own."""
        await self._arrived.wait()
        batch, count = [], 0
        while self._waiting and count < self._page_records:
            batch.append(self._waiting.pop(0))
            count += len(batch[-1][0])
        if not self._waiting:
            self._arrived.clear()
        try:
            row = await self._append(Page([r for records, _ in batch for r in records]))
            facts = {"stored": row["appended"], "known": row["unchanged"] + row["stale"]} if len(batch) == 1 else {}
            for _, answer in batch:
                if not answer.done():
                    answer.set_result(facts)
        except AWAY as error:
            for _, answer in batch:
                if not answer.done():
                    answer.set_exception(_Refused(503, "database", "the record could not be stored; send it again"))
            emit("source.failed", source=self.name, error=repr(error), hint="callers are told to come back")
        return 0.0
