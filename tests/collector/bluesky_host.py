"""A host of the AT protocol inside the test: repositories, their files, both kinds of stream, the directory of DIDs. All records are made up."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import socket
import time
from collections import Counter, deque
from typing import Any

import libipld
import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocketDisconnect

from collector.sources.bluesky_values import cid_text

BASE32 = "234567abcdefghijklmnopqrstuvwxyz"
POST = "app.bsky.feed.post"
LIKE = "app.bsky.feed.like"


def tid(micros: int, clock: int = 7) -> str:
    number = micros << 10 | clock
    return "".join(BASE32[number >> shift & 31] for shift in range(60, -1, -5))


def block_of(value: Any) -> tuple[bytes, bytes]:
    """CID and bytes of a value; bytes that are a CID become a link."""
    data = libipld.encode_dag_cbor(value)
    return b"\x01\x71\x12\x20" + hashlib.sha256(data).digest(), data


def varint(number: int) -> bytes:
    out = b""
    while number > 0x7F:
        out, number = out + bytes((number & 0x7F | 0x80,)), number >> 7
    return out + bytes((number,))


def car(root: bytes, blocks: dict[bytes, bytes]) -> bytes:
    parts = [libipld.encode_dag_cbor({"roots": [root], "version": 1}), *(cid + data for cid, data in blocks.items())]
    return b"".join(varint(len(part)) + part for part in parts)


def frame(kind: str, body: dict[str, Any]) -> bytes:
    return libipld.encode_dag_cbor({"op": 1, "t": kind}) + libipld.encode_dag_cbor(body)


def failing(error: str, message: str = "made up") -> bytes:
    return libipld.encode_dag_cbor({"op": -1}) + libipld.encode_dag_cbor({"error": error, "message": message})


def tree(items: list[tuple[str, bytes]], blocks: dict[bytes, bytes]) -> bytes:
    """The root of the tree that names these; its nodes are put into `blocks`."""

    def height(key: str) -> int:
        number = int.from_bytes(hashlib.sha256(key.encode()).digest(), "big")
        return (256 - number.bit_length()) // 2

    def node(part: list[tuple[str, bytes]]) -> bytes | None:
        if not part:
            return None
        top, waiting, entries, left, before = max(height(k) for k, _ in part), [], [], None, ""
        for key, cid in part:
            if height(key) < top:
                waiting.append((key, cid))
                continue
            below = node(waiting)
            if entries:
                entries[-1]["t"] = below
            else:
                left = below
            shared = next((n for n, (a, b) in enumerate(zip(before, key, strict=False)) if a != b), min(len(before), len(key)))
            entries.append({"p": shared, "k": key[shared:].encode(), "v": cid, "t": None})
            waiting, before = [], key
        entries[-1]["t"] = node(waiting)
        cid, data = block_of({"l": left, "e": entries})
        blocks[cid] = data
        return cid

    if root := node(sorted(items)):
        return root
    cid, data = block_of({"l": None, "e": []})
    blocks[cid] = data
    return cid


class Repo:
    def __init__(self, did: str, handle: str):
        self.did, self.handle, self.rev, self.state = did, handle, None, None
        self.records: dict[str, Any] = {}

    def car(self, without: str | None = None) -> bytes:
        """All of it; `without`: the path of a record whose block is left out."""
        blocks: dict[bytes, bytes] = {}
        items = []
        for path, value in self.records.items():
            cid, data = block_of(value)
            items.append((path, cid))
            if path != without:
                blocks[cid] = data
        root = tree(items, blocks)
        commit, data = block_of({"did": self.did, "rev": self.rev, "data": root, "prev": None, "version": 3, "sig": b"made up"})
        return car(commit, {commit: data} | blocks)


class Host:
    """`url`. What it was asked is in `calls` and `connections`; `script` says what the next connections to a stream get."""

    def __init__(self):
        self.url = "http://nowhere.example"
        self.repos: dict[str, Repo] = {}
        self.frames: list[tuple[int, bytes, str | None]] = []  # seq, frame, line of Jetstream
        self.calls: Counter[str] = Counter()
        self.connections: list[Any] = []
        self.hellos: list[Any] = []
        self.script: deque[tuple[str, Any]] = deque()
        self.blind: set[str] = set()  # collections that the stream does not carry
        self.limited: deque[float] = deque()  # the next calls are refused for so many seconds
        self.errors: deque[tuple[int, dict[str, Any]]] = deque()
        self.without: str | None = None
        self.cut_car = False
        self.shown: dict[str, Any] = {}
        self._times = int(time.time() * 1e6) - 3_600_000_000
        self._seq = 1000
        self._wake = asyncio.Condition()
        self._open: set[Any] = set()
        self.documents: dict[str, str] = {}  # DID: address of its host

    async def start(self) -> None:
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        routes = [
            Route("/xrpc/{method}", self._xrpc), Route("/{did:path}", self._document),
            WebSocketRoute("/subscribe", self._jetstream), WebSocketRoute("/xrpc/com.atproto.sync.subscribeRepos", self._firehose),
        ]  # fmt: skip
        config = uvicorn.Config(Starlette(routes=routes), log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._server.capture_signals = contextlib.nullcontext
        self._task = asyncio.create_task(self._server.serve(sockets=[listener]))

    async def stop(self) -> None:
        self._server.should_exit = True
        await self.drop()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    # -- what is written -----------------------------------------------------------------------------
    def account(self, name: str) -> Repo:
        did = f"did:plc:{hashlib.sha256(name.encode()).hexdigest()[:24].translate(str.maketrans('0189', 'wxyz'))}"
        if did not in self.repos:
            self.repos[did] = Repo(did, f"{name}.example")
            self.documents[did] = self.url
        return self.repos[did]

    def tick(self) -> int:
        self._times = max(self._times + 1000, int(time.time() * 1e6))
        return self._times

    async def write(self, repo: Repo, changes: dict[str, Any], *, quiet: bool = False, shown: dict[str, Any] | None = None) -> str:
        """One commit: path -> record, None deletes. `quiet`: no stream tells of it. `shown`: how records that are no JSON look as JSON."""
        self.shown |= shown or {}
        now, since = self.tick(), repo.rev
        repo.rev, ops, blocks, lines = tid(now), [], {}, []
        for path, value in changes.items():
            collection, rkey = path.split("/")
            action = "delete" if value is None else "update" if path in repo.records else "create"
            commit = {"rev": repo.rev, "operation": action, "collection": collection, "rkey": rkey}
            cid = None
            if value is None:
                del repo.records[path]
            else:
                repo.records[path] = value
                cid, blocks[cid] = block_of(value)
                commit |= {"record": self.shown.get(path, value), "cid": cid_text(cid)}
            ops.append({"action": action, "path": path, "cid": cid})
            lines.append(json.dumps({"did": repo.did, "time_us": now + len(lines), "kind": "commit", "commit": commit}))
        root, data = block_of({"did": repo.did, "rev": repo.rev, "version": 3})
        if not quiet:
            seen = [o for o in ops if o["path"].split("/")[0] not in self.blind]
            body = {"seq": 0, "repo": repo.did, "rev": repo.rev, "since": since, "time": _iso(now), "ops": seen, "blobs": [], "tooBig": False,
                    "rebase": False, "commit": root, "blocks": car(root, {root: data} | blocks)}  # fmt: skip
            await self.say("#commit", body, [line for line, op in zip(lines, ops, strict=True) if op in seen])
        return repo.rev

    async def say(self, kind: str, body: dict[str, Any], lines: list[str] | None = None) -> int:
        """One frame for all who listen, and the lines of Jetstream that tell the same."""
        async with self._wake:
            self._seq += 3
            sent = body | {"seq": self._seq}
            if lines is None and kind in ("#identity", "#account"):
                lines = [json.dumps({"did": body["did"], "time_us": self.tick(), "kind": kind[1:], kind[1:]: sent})]
            self.frames.append((self._seq, frame(kind, sent), None))
            self.frames += [(self._seq, b"", line) for line in lines or []]
            self._wake.notify_all()
        return self._seq

    async def became(self, repo: Repo, status: str | None, *, quiet: bool = False) -> None:
        """takendown, suspended, deactivated, deleted, or None: active."""
        repo.state = status
        if not quiet:
            await self.say(
                "#account", {"did": repo.did, "active": status is None, "time": _iso(self.tick())} | ({"status": status} if status else {})
            )

    async def drop(self) -> None:
        """All streams break."""
        for task in list(self._open):
            task.cancel()

    # -- what is asked -------------------------------------------------------------------------------
    async def _xrpc(self, request):
        method, asked = request.path_params["method"], request.query_params
        self.calls[method] += 1
        if self.limited:
            seconds = self.limited.popleft()
            told = {"ratelimit-limit": "3000", "ratelimit-remaining": "0", "ratelimit-reset": str(int(time.time() + seconds) + 1)}
            return JSONResponse({"error": "RateLimitExceeded", "message": "too fast"}, 429, told)
        if self.errors:
            status, said = self.errors.popleft()
            return Response(said, status) if isinstance(said, bytes) else JSONResponse(said, status)
        if method == "com.atproto.identity.resolveHandle":
            found = [r.did for r in self.repos.values() if r.handle == asked["handle"]]
            return _said({"did": found[0]}) if found else _wrong("InvalidRequest", "Unable to resolve handle")
        repo = self.repos.get(asked.get("did") or asked.get("repo"))
        if repo is None or repo.state == "deleted":
            return _wrong("RepoNotFound" if ".sync." in method else "InvalidRequest", "Could not find repo")
        if repo.state:
            return _wrong(f"Repo{repo.state.capitalize()}" if ".sync." in method else "InvalidRequest", "not at present")
        return getattr(self, "_" + method.rpartition(".")[2])(repo, asked)

    def _getLatestCommit(self, repo, asked):  # noqa: N802  as the method is called
        return _said({"cid": "made-up", "rev": repo.rev})

    def _getRepo(self, repo, asked):  # noqa: N802  as above
        whole = repo.car(self.without)
        return Response(whole[: len(whole) // 2] if self.cut_car else whole, media_type="application/vnd.ipld.car")

    def _describeRepo(self, repo, asked):  # noqa: N802  as above
        return _said({"did": repo.did, "handle": repo.handle, "collections": sorted({p.split("/")[0] for p in repo.records})})

    def _listRecords(self, repo, asked):  # noqa: N802  as above
        keys = sorted(p.split("/")[1] for p in repo.records if p.split("/")[0] == asked["collection"])
        if asked.get("reverse") != "true":
            keys.reverse()
        begin = keys.index(asked["cursor"]) + 1 if "cursor" in asked else 0
        page = keys[begin : begin + int(asked["limit"])]
        paths = [f"{asked['collection']}/{key}" for key in page]
        rows = [
            {"uri": f"at://{repo.did}/{p}", "cid": cid_text(block_of(repo.records[p])[0]), "value": self.shown.get(p, repo.records[p])} for p in paths
        ]
        return _said({"records": rows} | ({"cursor": page[-1]} if page else {}))

    async def _document(self, request):
        did = request.path_params["did"]
        self.calls["plc"] += 1
        if did not in self.documents:
            return JSONResponse({"message": f"DID not registered: {did}"}, 404)
        service = {"id": "#atproto_pds", "type": "AtprotoPersonalDataServer", "serviceEndpoint": self.documents[did]}
        return JSONResponse({"id": did, "alsoKnownAs": [f"at://{self.repos[did].handle}"], "service": [service]})

    # -- streams -------------------------------------------------------------------------------------
    async def _firehose(self, socket_):
        cursor = socket_.query_params.get("cursor")
        begin = len(self.frames) if cursor is None else next((n for n, f in enumerate(self.frames) if f[0] > int(cursor)), len(self.frames))
        await self._stream(socket_, begin, lambda data, line: data or None)

    async def _jetstream(self, socket_):
        cursor, dids, names = (int(socket_.query_params.get("cursor", 0)), *map(socket_.query_params.getlist, ("wantedDids", "wantedCollections")))
        if "requireHello" in socket_.query_params:
            dids = None

        def wanted(data, line):
            if line is None:
                return None
            event = json.loads(line)
            name = event.get("commit", {}).get("collection")
            named = not names or not name or any(name == n or (n.endswith(".*") and name.startswith(n[:-1])) for n in names)
            return line if named and event["time_us"] >= cursor and (not dids or event["did"] in dids) else None

        await self._stream(socket_, 0, wanted, hello=dids is None)

    async def _stream(self, socket_, at, chosen, *, hello=False):
        self.connections.append((socket_.url.path, dict(socket_.query_params), socket_.query_params.getlist("wantedDids")))
        what, more = self.script.popleft() if self.script else ("", None)
        if what == "refuse":
            await socket_.send_denial_response(JSONResponse(more[1], more[0]))
            return
        await socket_.accept()
        if hello:
            self.hellos.append(json.loads(await socket_.receive_text()))
        if what == "send":
            await socket_.send_bytes(more)
        elif what == "stall":
            at = None
        elif what == "end":
            await socket_.close()
            return
        task = asyncio.ensure_future(self._tell(socket_, at, chosen))
        self._open.add(task)
        gone = asyncio.ensure_future(socket_.receive())
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        self._open.discard(task)
        gone.cancel()
        if task.cancelled():
            with contextlib.suppress(RuntimeError, WebSocketDisconnect):
                await socket_.close(1012)
        task.cancel()

    async def _tell(self, socket_, at, chosen):
        if at is None:
            await asyncio.Event().wait()
        while True:
            for _, data, line in self.frames[at:]:
                at += 1
                if (sent := chosen(data, line)) is not None:
                    await (socket_.send_bytes(sent) if isinstance(sent, bytes) else socket_.send_text(sent))
            async with self._wake:
                while len(self.frames) <= at:
                    await self._wake.wait()


def _said(value):
    return JSONResponse(value, headers={"ratelimit-limit": "3000", "ratelimit-remaining": "2990", "ratelimit-reset": str(int(time.time()) + 300)})


def _wrong(error, message):
    return JSONResponse({"error": error, "message": message}, 400)


def _iso(micros: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(micros // 1_000_000)) + f".{micros % 1_000_000:06d}Z"
