"""bluesky: accounts and streams of the AT protocol, as relays, Jetstream and the accounts' own hosts give them to anybody."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from collector.sources import Page, Source, source
from collector.sources.bluesky_account import AccountByCar, AccountByList
from collector.sources.bluesky_client import host_of, limit_of
from collector.sources.bluesky_events import FIREHOSE, JETSTREAM
from collector.sources.bluesky_intake import Intake
from collector.sources.bluesky_options import JETSTREAM as PUBLIC
from collector.sources.bluesky_options import RELAY, BlueskyOptions
from collector.sources.bluesky_records import Maker
from collector.sources.bluesky_tail import Stream, whole_address
from worker.core.errors import Misconfigured
from worker.core.settings import CollectorSettings


class Everything:
    """A whole stream. What a host no longer has when we come back is lost, and an `info` record says so where the host does."""

    exclusive: tuple[str, ...] = ()
    exclusive_history: tuple[str, ...] = ()

    def __init__(self, name: str, transport: str, options: BlueskyOptions, settings: CollectorSettings) -> None:
        self.name = name
        self._address = whole_address(options.stream or (PUBLIC if transport == JETSTREAM else RELAY), transport)
        self._intake = Intake(transport, Maker(whole=True), options.collections, options.wanted_dids or None)
        self._stream = Stream(transport, self._intake, settings, options.heartbeat)
        self.limits: tuple[str, ...] = (limit_of(self._address),)

    @property
    def caught_up(self) -> bool:
        return self._stream.caught_up

    @caught_up.setter
    def caught_up(self, value: bool) -> None:
        self._stream.caught_up = value

    def describe(self) -> str:
        of = ", ".join(self._intake.collections) or "all collections"
        by = f"{len(self._intake.dids)} accounts" if self._intake.dids else "everybody"
        return f"{of} of {by}, from {host_of(self._address)}"

    async def tail(self, position: dict[str, Any], stop: asyncio.Event) -> AsyncGenerator[Page, None]:
        while not stop.is_set():
            async with aclosing(self._stream.pages(self._address, position, stop)) as pages:
                async for page in pages:
                    yield page
                    position = page.position
                    self._intake.states.clear()


@source("bluesky", BlueskyOptions)
def made(name: str, options: BlueskyOptions, settings: CollectorSettings) -> Source:
    """The path of the name says what is read. Raises Misconfigured."""
    path = name.partition(":")[2]
    if path in (JETSTREAM, FIREHOSE):
        if options.transport or options.pds:
            raise Misconfigured(f"sources.{name}: a whole stream has no `transport` or `pds`", "name its address with `stream`")
        return Everything(name, path, options, settings)
    if not path.startswith("did:") and "." not in path:
        raise Misconfigured(
            f"sources.{name}: {path!r} is no account", "write bluesky:did:plc:..., bluesky:a.handle, bluesky:jetstream or bluesky:firehose"
        )
    if options.wanted_dids:
        raise Misconfigured(f"sources.{name}: `wanted_dids` is for a whole stream", "use bluesky:jetstream or bluesky:firehose")
    return (AccountByList if options.method == "list" else AccountByCar)(name, options, settings)
