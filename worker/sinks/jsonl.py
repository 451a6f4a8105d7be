"""jsonl: one line per delivery at the end of a file. Lines of several processes do not mix; a repeated key is found and not written again."""

from __future__ import annotations

import asyncio
import datetime as dt
import fcntl
import os
import time
from pathlib import Path
from typing import BinaryIO

import orjson
from pydantic import BaseModel, ConfigDict, Field

from worker.core.errors import Misconfigured
from worker.core.models import Delivery, Receipt
from worker.sinks import sink


class JsonlOptions(BaseModel):
    """`[effects.KIND]` with sink jsonl."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    path: Path = Field(description="the file; its folder is made, the folder above must be there")


@sink("jsonl", JsonlOptions, lambda _options: "idempotent")
class Jsonl:
    """The file itself is the record of what was delivered: before a second attempt it is searched for the key."""

    timeout = 30.0

    def __init__(self, kind: str, options: JsonlOptions) -> None:
        self._path = options.path
        try:
            self._path.parent.mkdir(exist_ok=True)
        except OSError as error:
            raise Misconfigured(f"effects.{kind}: no folder {self._path.parent}: {error.strerror}", "make it, or correct `path`") from error

    async def send(self, delivery: Delivery) -> Receipt:
        return await asyncio.get_running_loop().run_in_executor(None, self._write, delivery, time.monotonic() + self.timeout)

    def _write(self, delivery: Delivery, until: float) -> Receipt:
        line = orjson.dumps({
            "key": delivery.key, "kind": delivery.kind, "target": delivery.target, "body": delivery.body, "source": delivery.source,
            "external_id": delivery.external_id, "at": dt.datetime.now(dt.UTC).isoformat(),
        }) + b"\n"  # fmt: skip
        try:
            with self._path.open("a+b", buffering=0) as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                if time.monotonic() > until:
                    return Receipt("retry", detail=f"{self._path} was locked for too long")
                if delivery.attempt > 1 and self._holds(delivery.key):
                    return Receipt("sent", detail="was there already")
                return _append(file, line)
        except OSError as error:
            return Receipt("retry", detail=f"cannot write {self._path}: {error.strerror}")

    def _holds(self, key: str) -> bool:
        needle = b'{"key":' + orjson.dumps(key) + b","
        with self._path.open("rb") as file:
            return any(line.startswith(needle) and line.endswith(b"\n") for line in file)

    async def close(self) -> None:
        """Nothing stays open."""


def _append(file: BinaryIO, line: bytes) -> Receipt:
    """One write call, then fsync. What a crash left without its end stays a line of its own."""
    end = file.seek(0, os.SEEK_END)
    if end and os.pread(file.fileno(), 1, end - 1) != b"\n":
        line = b"\n" + line
    if file.write(line) != len(line):
        file.truncate(end)
        return Receipt("retry", detail="the disk is full")
    os.fsync(file.fileno())
    return Receipt("sent", remote_id=str(end))
