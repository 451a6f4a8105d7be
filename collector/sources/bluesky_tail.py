"""News as a stream brings them, page by page, and what makes one connection be given up for another."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any
from urllib.parse import urlencode, urlsplit, urlunsplit

from collector.sources import Page
from collector.sources.bluesky_client import host_of
from collector.sources.bluesky_events import FIREHOSE, JETSTREAM, Garbled, Refused
from collector.sources.bluesky_intake import Intake
from collector.sources.bluesky_place import Place
from collector.sources.bluesky_values import text_of
from collector.sources.bluesky_wire import Wire
from worker.core.errors import Unavailable
from worker.core.settings import CollectorSettings

PATHS = {FIREHOSE: "/xrpc/com.atproto.sync.subscribeRepos", JETSTREAM: "/subscribe"}
BACK = 5_000_000  # microseconds that Jetstream is asked to repeat: its times do not rise strictly
ALONE = 0.3  # seconds between two pages that only move the position
QUIET = 1.0  # seconds without a frame after which there is nothing more at present
PATIENCE = 10  # times `heartbeat`: what a stream that is found silent again and again is waited for
IN_ADDRESS = 50  # accounts that fit into an address; more are sent as a message


def whole_address(address: str, transport: str) -> str:
    """A host's name or address as that of its stream."""
    parts = urlsplit(address if "://" in address else f"wss://{address}")
    scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
    return urlunsplit(parts._replace(scheme=scheme, path=parts.path.rstrip("/") or PATHS[transport]))


class Stream:
    """One stream, connected again and again."""

    def __init__(self, transport: str, intake: Intake, settings: CollectorSettings, heartbeat: float) -> None:
        self.connected = asyncio.Event()
        self.leave = asyncio.Event()  # set it to have the connection end, so that another host can be asked
        self.caught_up = False
        self._transport, self._intake, self._settings = transport, intake, settings
        self._beat = self._patience = heartbeat

    async def pages(self, address: str, position: dict[str, Any], stop: asyncio.Event, did: str = "") -> AsyncGenerator[Page, None]:
        """From `position` on, until the stream is silent for too long. Raises Unavailable, Limited, Garbled where it breaks.

        `did`: the one account that this is about.
        """
        url, intake = whole_address(address, self._transport), self._intake
        place = intake.place = Place.read(position, self._transport, host_of(url), did)
        self.leave.clear()
        try:
            async with Wire(self._asking(url, place.cursor), self._hello()) as wire, aclosing(self._connected(wire, position, stop)) as pages:
                async for page in pages:
                    yield page
        except Refused as error:
            intake.gap.set()
            if place.cursor is None or "cursor" not in error.name.lower():
                raise Unavailable(str(error)) from error
            place.cursor = None
            yield Page([], place.position())
        except Garbled:
            intake.gap.set()
            raise
        finally:
            self.connected.clear()
            self.caught_up = False

    async def _connected(self, wire: Wire, position: dict[str, Any], stop: asyncio.Event) -> AsyncGenerator[Page, None]:
        place, told, heard, spoke = self._intake.place, position, time.monotonic(), 0.0
        begun = place.cursor
        if begun is None:
            self._intake.gap.set()
        self.connected.set()
        while not stop.is_set() and not self.leave.is_set():
            frames = await wire.take(self._rest(moved=place.position() != told, heard=heard), stop)
            now = time.monotonic()
            if frames:
                heard = now
            elif now - heard >= self._patience:
                self._intake.gap.set()
                self._patience = min(2 * self._patience, PATIENCE * self._beat)
                return
            for records in self._intake.batches(frames, self._settings.page_records):
                if records or now - spoke >= ALONE:
                    told, spoke = place.position(), now
                    yield Page(records, told)
            if place.cursor != begun:  # more than what was asked for again
                self._patience = self._beat
            self.caught_up = self._intake.recent or (not frames and now - heard >= QUIET)

    def _rest(self, *, moved: bool, heard: float) -> float:
        """Seconds to wait for a frame."""
        if moved:
            return ALONE
        return QUIET if not self.caught_up else max(0.05, heard + self._patience - time.monotonic())

    def _asking(self, url: str, cursor: int | None) -> str:
        """With the cursor, and with what Jetstream shall send."""
        dids, asked = sorted(self._intake.dids or ()), list[tuple[str, Any]]()
        if self._transport == FIREHOSE:
            asked += [("cursor", max(cursor - 1, 0))] if cursor is not None else []
        else:
            asked += [("cursor", max((int(time.time() * 1e6) if cursor is None else cursor) - BACK, 1))]
            asked += [("wantedCollections", name) for name in self._intake.collections]
            asked += [("wantedDids", did) for did in dids] if len(dids) <= IN_ADDRESS else [("requireHello", "true")]
        parts = urlsplit(url)
        return urlunsplit(parts._replace(query="&".join(filter(None, (parts.query, urlencode(asked))))))

    def _hello(self) -> str:
        dids = sorted(self._intake.dids or ())
        if self._transport == FIREHOSE or len(dids) <= IN_ADDRESS:
            return ""
        return text_of({"type": "options_update", "payload": {"wantedCollections": self._intake.collections, "wantedDids": dids}})
