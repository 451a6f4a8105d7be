"""An account: at a host of the test's own, by either stream and either way to read a repository, and at the real host software."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from typing import Any, ClassVar

from tests.collector.bluesky_host import LIKE, POST, Host, tid
from tests.collector.contract import Subject, standin

MEADOWS = ("clover", "sorrel", "yarrow", "plantain", "vetch")


class Account(Subject):
    kind = "bluesky"
    transport, method = "firehose", "car"

    async def start(self):
        self.host = Host()
        await self.host.start()
        self.repo, self.other = self.host.account("meadow"), self.host.account("hedge")
        self._next = 0
        await self.post(34)
        await self.host.write(
            self.repo, {f"{LIKE}/{tid(self.host.tick())}": {"$type": LIKE, "subject": {"uri": "at://nobody", "cid": "none"}} for _ in range(6)}
        )

    async def stop(self):
        await self.host.stop()

    def name(self):
        return f"bluesky:{self.repo.did}"

    def spec(self):
        stream = f"ws://127.0.0.1:{self.host.port}"
        return {"kind": "bluesky", "plc": self.host.url, "stream": stream, "transport": self.transport, "method": self.method}

    async def truth(self):
        return {path: value.get("text", path) for path, value in self.repo.records.items()}

    async def post(self, count):
        paths = [f"{POST}/{tid(self.host.tick())}" for _ in range(count)]
        for path in paths:
            self._next += 1
            await self.host.write(
                self.repo, {path: {"$type": POST, "text": f"{MEADOWS[self._next % 5]} seen, note {self._next}", "createdAt": "2026-05-01T08:00:00Z"}}
            )
            await self.host.write(self.other, {path: {"$type": POST, "text": "not ours", "createdAt": "2026-05-01T08:00:00Z"}})
        return paths

    async def edit(self, key):
        self._next += 1
        await self.host.write(self.repo, {key: self.repo.records[key] | {"text": f"corrected, note {self._next}"}})

    async def delete(self, key):
        await self.host.write(self.repo, {key: None})

    async def limit(self, seconds):
        self.host.limited.append(seconds)


class ByJetstream(Account):
    kind = "bluesky"
    transport, method = "jetstream", "list"


class AtStandin(Subject):
    """The reference host software: alice's account, by its firehose."""

    kind = "bluesky"
    shared = True
    transport, method = "firehose", "car"

    running: ClassVar[list[Any]] = []  # one for all tests: it takes long to start, and ends with this process

    async def start(self):
        if not AtStandin.running:
            AtStandin.running.append(await asyncio.to_thread(standin, "bluesky"))
        self.standin = AtStandin.running[0]
        self.standin.reset()
        self.did = self.standin.do("accounts")["alice"]["did"]
        self._token = (await self._call("com.atproto.server.createSession", {"identifier": "alice.test", "password": "stand-in-password"}))[
            "accessJwt"
        ]
        self._next = 0

    async def _call(self, method, body=None, **asked):
        def call():
            query = "&".join(f"{k}={v}" for k, v in asked.items())
            headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._token}"} if hasattr(self, "_token") else {})
            request = urllib.request.Request(
                f"{self.standin.url}/xrpc/{method}?{query}", None if body is None else json.dumps(body).encode(), headers
            )
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.loads(answer.read() or b"{}")

        return await asyncio.to_thread(call)

    async def stop(self):
        """Others go on with it."""

    def name(self):
        return "bluesky:alice.test"

    def spec(self):
        stream = f"ws://127.0.0.1:{self.standin.port}"
        return {
            "kind": "bluesky", "plc": self.standin.info["plc"], "resolver": self.standin.url,
            "stream": stream, "transport": self.transport, "method": self.method,
        }  # fmt: skip

    async def truth(self):
        found = {}
        for name in (await self._call("com.atproto.repo.describeRepo", repo=self.did))["collections"]:
            cursor = {}
            while rows := (answer := await self._call("com.atproto.repo.listRecords", repo=self.did, collection=name, limit=100, **cursor))[
                "records"
            ]:
                found |= {r["uri"].split("/", 3)[3]: r["cid"] for r in rows}
                cursor = {"cursor": answer["cursor"]}
        return found

    async def post(self, count):
        made = []
        for _ in range(count):
            self._next += 1
            record = {"$type": POST, "text": f"note {self._next} from the meadow", "createdAt": "2026-05-01T08:00:00Z"}
            made.append((await self._call("com.atproto.repo.createRecord", {"repo": self.did, "collection": POST, "record": record}))["uri"])
        return [uri.split("/", 3)[3] for uri in made]

    async def edit(self, key):
        self._next += 1
        record = {"$type": POST, "text": f"corrected {self._next}", "createdAt": "2026-05-01T08:00:00Z"}
        await self._call("com.atproto.repo.putRecord", {"repo": self.did, "collection": POST, "rkey": key.split("/")[1], "record": record})

    async def delete(self, key):
        await self._call("com.atproto.repo.deleteRecord", {"repo": self.did, "collection": POST, "rkey": key.split("/")[1]})

    async def limit(self, seconds):
        self.standin.fault(do="status", status=429, retry_after=seconds, op="sync.getLatestCommit")


class AtStandinByJetstream(AtStandin):
    kind = "bluesky"
    transport, method = "jetstream", "list"


SUBJECTS = [Account, ByJetstream, AtStandin, AtStandinByJetstream]
