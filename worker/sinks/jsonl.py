"""jsonl: one line per delivery at the end of a file. Lines of several processes do not mix; a repeated key is found and not written again."""

from __future__ import annotations

import asyncio
import datetime as dt
import fcntl
import os
from pathlib import Path

import orjson
from pydantic import BaseModel, ConfigDict, Field

from worker.core.models import Delivery, Receipt
from worker.sinks import sink


class JsonlOptions(BaseModel):
    """`[effects.KIND]` with sink jsonl."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    path: Path = Field(description="the file; its folder is made")


@sink("jsonl", JsonlOptions, lambda _options: "idempotent")
class Jsonl:
    """The file itself is the record of what was delivered: before a second attempt it is searched for the key."""

    timeout = 30.0

    def __init__(self, _kind: str, options: JsonlOptions) -> None:
        self._path = options.path

    async def send(self, delivery: Delivery) -> Receipt:
        return await asyncio.get_running_loop().run_in_executor(None, self._write, delivery)

    def _write(self, delivery: Delivery) -> Receipt:
        line = orjson.dumps({
            "key": delivery.key, "kind": delivery.kind, "target": delivery.target, "body": delivery.body, "source": delivery.source,
            "external_id": delivery.external_id, "at": dt.datetime.now(dt.UTC).isoformat(),
        }) + b"\n"  # fmt: skip
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a+b", buffering=0) as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                if delivery.attempt > 1 and self._holds(delivery.key):
                    return Receipt("sent", detail="was there already")
                end = file.seek(0, os.SEEK_END)
                if file.write(line) != len(line):
                    file.truncate(end)
                    return Receipt("retry", detail="the disk is full")
                os.fsync(file.fileno())
        except OSError as error:
            return Receipt("retry", detail=f"cannot write {self._path}: {error.strerror}")
        return Receipt("sent", remote_id=str(end))

    def _holds(self, key: str) -> bool:
        needle = b'{"key":' + orjson.dumps(key) + b","
        with self._path.open("rb") as file:
            return any(line.startswith(needle) for line in file)

    async def close(self) -> None:
        """Nothing stays open."""
