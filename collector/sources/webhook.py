"""webhook: HTTP POST to /webhook/NAME, signed, answered 202 only after commit."""

from __future__ import annotations

import asyncio
import io
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from collector.record import Builder, short
from collector.sources import Page, source
from collector.sources.signing import Refused, WebhookOptions, check_signature, parts, secret_of
from collector.sources.values import array
from worker.core.crashpoint import crashpoint
from worker.core.db import AWAY
from worker.core.events import emit
from worker.core.models import RawRecord
from worker.core.settings import CollectorSettings

MOST_HELD = 64_000_000  # bytes of bodies that may wait for their commit; the next call is asked to come back
BODY_SECONDS, COMMIT_SECONDS = 30.0, 15.0


@source("webhook", WebhookOptions)
class Webhook:
    """Calls that come while a commit is on its way go together into the next page."""

    def __init__(self, name: str, options: WebhookOptions, settings: CollectorSettings) -> None:
        self.name = name
        self.exclusive: tuple[str, ...] = ()
        self.exclusive_history: tuple[str, ...] = ()
        self.limits: tuple[str, ...] = ()
        self.caught_up = True
        self._o = options
        self._settings = settings
        self._secret = secret_of(name, options)
        self._builder = Builder(options)
        self._waiting: deque[tuple[list[RawRecord], int, asyncio.Future[dict[str, Any]]]] = deque()
        self._arrived = asyncio.Event()
        self._held = 0
        self._closed = False

    def describe(self) -> str:
        return f"POST /webhook/{self.name.partition(':')[2]} ({'signed' if self._secret else 'UNSIGNED'})"

    def routes(self, append: Callable[[Page], Awaitable[Any]]) -> list[BaseRoute]:
        self._append = append
        return [Route(f"/webhook/{self.name.partition(':')[2]}", self._post, methods=["POST"])]

    async def _post(self, request: Request) -> Response:
        held = 0
        try:
            body = bytearray()
            async with asyncio.timeout(BODY_SECONDS):
                async for part in parts(request, self._o.max_bytes):
                    body += part
                    held += len(part)
                    self._hold(len(part))
            check_signature(request, bytes(body), self._o, self._secret)
            records = self._records(request, bytes(body))
            facts = await self._commit(records, len(body))
            return JSONResponse({"accepted": len(records), **facts}, 202)
        except (ClientDisconnect, TimeoutError):
            return self._refusal(Refused(408, "cut off", "the body did not come to its end in time"))
        except Refused as refused:
            return self._refusal(refused)
        finally:
            self._held -= held

    def _refusal(self, refused: Refused) -> Response:
        emit("webhook.refused", source=self.name, reason=refused.reason, status=refused.status)
        headers = {"Retry-After": "5"} if refused.status == 503 else {}  # noqa: PLR2004  Service Unavailable
        return JSONResponse({"error": str(refused), "reason": refused.reason}, refused.status, headers)

    def _hold(self, size: int) -> None:
        self._held += size
        if self._held > MOST_HELD:
            raise Refused(503, "busy", "too much waits for the database; come back in some seconds")

    def _records(self, request: Request, body: bytes) -> list[RawRecord]:
        if not body.strip():
            raise Refused(400, "empty", "there is no body")
        meta = {"content_type": request.headers.get("content-type", "")}
        if event := request.headers.get("x-github-event"):
            meta |= {"event": event}
        parts = self._split(body) if self._o.split else [body]
        records = [self._builder.build(part, meta) for part in parts]
        key = request.headers.get("idempotency-key") or request.headers.get("x-github-delivery")
        if key and len(records) == 1 and not self._o.id_field:
            r = records[0]
            records = [RawRecord(short(key), r.digest, r.payload, r.body, r.op, r.occurred_at, r.source_time, r.meta)]
        return records

    def _split(self, body: bytes) -> list[bytes]:
        """The elements of an array, byte for byte."""
        pieces = list(array(io.BytesIO(body), len(body)))
        if any(piece.why for piece in pieces):
            raise Refused(400, "not JSON", "the body is not a JSON array")
        return [piece.raw for piece in pieces]

    async def _commit(self, records: list[RawRecord], size: int) -> dict[str, Any]:
        """Returns when the records are stored. A caller that gives up, or is given up, may send again: its key is known then."""
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        if self._closed:
            raise Refused(503, "stopping", "the collector is stopping; send it again")
        self._waiting.append((records, size, answer))
        self._arrived.set()
        try:
            return await asyncio.wait_for(answer, COMMIT_SECONDS)
        except TimeoutError:
            raise Refused(503, "database", "the record could not be stored in time; send it again") from None

    async def step(self) -> float:
        """Writes what waits as pages and answers it; calls that come meanwhile go together into the next page."""
        await self._arrived.wait()
        self._arrived.clear()
        while self._waiting:
            await self._write(self._batch())
        if self._closed:
            self._arrived.set()
        return 0.0

    def close(self) -> None:
        self._closed = True
        self._arrived.set()

    def _batch(self) -> list[tuple[list[RawRecord], asyncio.Future[dict[str, Any]]]]:
        batch, count, size = [], 0, 0
        while self._waiting and count < self._settings.page_records and size < self._settings.page_bytes:
            records, length, answer = self._waiting.popleft()
            if not answer.done():
                batch.append((records, answer))
                count, size = count + len(records), size + length
        return batch

    async def _write(self, batch: list[tuple[list[RawRecord], asyncio.Future[dict[str, Any]]]]) -> None:
        try:
            row = await self._append(Page([r for records, _ in batch for r in records]))
            crashpoint("after-commit-before-answer")
            facts = {"stored": row["appended"], "known": row["unchanged"] + row["stale"]} if len(batch) == 1 else {}
            for _, answer in batch:
                if not answer.done():
                    answer.set_result(facts)
        except Exception as error:
            for _, answer in batch:
                if not answer.done():
                    answer.set_exception(Refused(503, "database", "the record could not be stored; send it again"))
            emit("source.failed", source=self.name, error=repr(error), hint="callers are told to come back")
            if not isinstance(error, AWAY):
                raise
