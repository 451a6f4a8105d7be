"""What the world shows us: lines appended to files, calls of a webhook. Every record that was acknowledged stands in the ledger."""

from __future__ import annotations

import asyncio
import json
import os
import random
from pathlib import Path

import httpx

MIX = {"quick": 70, "slow": 8, "flaky": 5, "again": 4, "skip": 5, "raise": 1, "late": 0.2}
POISON = ("exit", "kill", "hang")


async def rest(seconds: float, stop: asyncio.Event) -> None:
    """A pause that ends when `stop` is set."""
    try:
        await asyncio.wait_for(stop.wait(), seconds)
    except TimeoutError:
        return


class Feed:
    """`poison_until` (seconds from the start): later records do not take their worker down, so that the end is reached."""

    def __init__(self, folder: Path, seed: int, webhook: str) -> None:
        self._folder = folder / "inbox"
        self._folder.mkdir()
        self._chance = random.Random(seed)
        self._ledger = (folder / "ledger.jsonl").open("a", buffering=1)
        self._url = webhook
        self._file, self._rotated = self._folder / "a.jsonl", 0
        self._here: dict[str, dict] = {}  # the newest line of each id in the present file
        self._number = 0
        self.poison: list[str] = []  # what comes next, before anything else
        self.written = self.poisoned = self.refused = 0
        self.unsure = 0

    def note(self, **facts: object) -> None:
        self._ledger.write(json.dumps(facts) + "\n")

    def _fresh(self, prefix: str) -> dict:
        self._number += 1
        how = self._chance.choices(list(MIX), list(MIX.values()))[0]
        if self.poison:
            how, self.poisoned = self.poison.pop(), self.poisoned + 1
        return {"id": f"{prefix}{self._number}", "v": 1, "how": how}

    def _next_line(self) -> tuple[dict, bool]:
        """A new record, an edit of one, or the same once more, which is no news."""
        dice, known = self._chance.random(), [r for r in self._here.values() if r["how"] == "quick"]
        if dice < 0.06 and known and not self.poison:
            old = self._chance.choice(known)
            line, news = (old | {"v": old["v"] + 1}, True) if dice < 0.04 else (old, False)
        else:
            line, news = self._fresh("f"), True
        self._here[line["id"]] = line  # at once: a repeat of what was edited meanwhile would be an edit back
        return line, news

    async def files(self, stop: asyncio.Event, per_second: float) -> None:
        """Appends some lines at once; now and then the file is put aside under another name."""
        while not stop.is_set():
            lines = [self._next_line() for _ in range(self._chance.randint(1, 20))]
            with self._file.open("a") as file:
                file.write("".join(json.dumps(line) + "\n" for line, _ in lines))
                file.flush()
                os.fsync(file.fileno())
            for line, news in lines:
                if news:
                    self.note(source="files:inbox", **line)
                    self.written += 1
            if self._chance.random() < 0.02:
                self._rotated += 1
                self._file.rename(self._folder / f"a-{self._rotated:04}.jsonl")
                self._here.clear()
            await rest(self._chance.uniform(0, 2) * len(lines) / per_second, stop)

    async def calls(self, stop: asyncio.Event, give_up: asyncio.Event, per_second: float) -> None:
        """Posts with a key, again and again until it is acknowledged; `give_up` ends that too."""
        async with httpx.AsyncClient(timeout=20) as client:
            while not stop.is_set():
                record = self._fresh("w")
                await self._call(client, record, give_up)
                if self._chance.random() < 0.05:
                    await self._post(client, record)
                await rest(self._chance.uniform(0, 2) / per_second, stop)

    async def _call(self, client: httpx.AsyncClient, record: dict, give_up: asyncio.Event) -> None:
        while not await self._post(client, record):
            self.refused += 1
            await rest(0.3, give_up)
            if give_up.is_set():
                self.unsure += 1
                return
        self.note(source="webhook:orders", **record)
        self.written += 1

    async def _post(self, client: httpx.AsyncClient, record: dict) -> bool:
        try:
            answer = await client.post(self._url, json=record, headers={"Idempotency-Key": record["id"]})
        except httpx.HTTPError:
            return False
        return answer.status_code == 202
