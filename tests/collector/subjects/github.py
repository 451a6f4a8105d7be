"""Pull requests of one repository: at a small GraphQL service of the test's own, and at the stand-in."""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import json
from collections import deque

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.collector.contract import Subject, standin
from worker.core.http import _Server

TOKEN = "ghs_of-the-test-only"
REPO = "river/barge"


def iso(moment):
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


class FakeGithub:
    """Answers the one query of the source. `answers`: what the next calls get instead, (status, headers, body) or a function of the
    answer; or an event, for which the answer waits.
    """

    def __init__(self):
        self.pulls, self.answers, self.asked, self.statuses = {}, deque(), [], []
        self.now = dt.datetime.now(dt.UTC).replace(microsecond=0) - dt.timedelta(days=90)
        self.remaining = 5000

    async def start(self):
        config = uvicorn.Config(Starlette(routes=[Route("/graphql", self._post, methods=["POST"])]), port=0, log_config=None, lifespan="off")
        self._server = _Server(config)
        self._task = asyncio.create_task(self._server.serve())
        while not self._server.started:
            await asyncio.wait([self._task], timeout=0.01)
        self.url = f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}"

    async def stop(self):
        self._server.should_exit = self._server.force_exit = True
        await self._task

    def put(self, number=None, **fields):
        """Opens a pull request, or changes one; a second passes."""
        self.now += dt.timedelta(seconds=1)
        number = number or max(self.pulls, default=0) + 1
        person = {"__typename": "User", "login": "vera", "databaseId": 31}
        new = {
            "number": number, "databaseId": 7_000_000 + number, "id": f"PR_{number}", "title": f"first {number}", "body": "", "state": "OPEN",
            "author": person, "createdAt": iso(self.now), "comments": {"totalCount": 0}, "reviews": {"totalCount": 0},
        }  # fmt: skip
        self.pulls[number] = self.pulls.get(number, new) | {"updatedAt": iso(self.now)} | fields
        return number

    def page(self, after, first, by):
        """As the service orders and cuts: by the field, then by number; a cursor is a place in that order."""
        field, down = {"CREATED_AT": "createdAt", "UPDATED_AT": "updatedAt"}[by["field"]], by["direction"] == "DESC"
        ordered = sorted(self.pulls.values(), key=lambda p: (p[field], p["number"]), reverse=down)
        if after:
            place = tuple(json.loads(base64.b64decode(after)))
            ordered = [p for p in ordered if ((p[field], p["number"]) < place if down else (p[field], p["number"]) > place)]
        nodes = ordered[:first]
        end = base64.b64encode(json.dumps([nodes[-1][field], nodes[-1]["number"]]).encode()).decode() if nodes else None
        return {"totalCount": len(self.pulls), "pageInfo": {"hasNextPage": len(ordered) > len(nodes), "endCursor": end}, "nodes": nodes}

    async def _post(self, request):
        asked = json.loads(await request.body())
        self.asked.append(asked["variables"])
        answer = await self._answer(request, asked["variables"])
        self.statuses.append(answer.status_code)
        return answer

    async def _answer(self, request, asked):
        told = self.answers.popleft() if self.answers else None
        if isinstance(told, asyncio.Event):
            await told.wait()
        if isinstance(told, tuple):
            status, headers, body = told
            return Response(body if isinstance(body, bytes) else json.dumps(body), status, headers, "application/json")
        if request.headers["authorization"] != f"token {TOKEN}":
            return JSONResponse({"message": "Bad credentials"}, 401)
        if f"{asked['owner']}/{asked['name']}" != REPO:
            missing = {"type": "NOT_FOUND", "path": ["repository"], "message": "Could not resolve to a Repository"}
            return JSONResponse({"data": {"repository": None}, "errors": [missing]})
        try:
            pulls = self.page(asked["after"], asked["first"], asked["by"])
        except ValueError:
            odd = {"type": "INVALID_CURSOR_ARGUMENTS", "message": f"`{asked['after']}` does not appear to be a valid cursor."}
            return JSONResponse({"data": {"repository": {"pullRequests": None}}, "errors": [odd]})
        self.remaining -= 4
        rate = {"cost": 4, "limit": 5000, "remaining": self.remaining, "resetAt": "2031-01-01T00:00:00Z"}
        answer = {"data": {"rateLimit": rate, "repository": {"pullRequests": pulls}}}
        return Response(json.dumps(told(answer) if callable(told) else answer), media_type="application/json")


class Github(Subject):
    kind = "github"
    deletions = False  # GitHub deletes no pull request

    async def start(self):
        self.fake = FakeGithub()
        await self.fake.start()
        for _ in range(40):
            self.fake.put()
        self.fake.put(7, databaseId=None)
        self.fake.put(9, author=None)

    async def stop(self):
        await self.fake.stop()

    def name(self):
        return f"github:{REPO}"

    def spec(self):
        (self.folder / "token").write_text(TOKEN + "\n")
        return {"kind": "github", "token_file": str(self.folder / "token"), "base_url": self.fake.url, "every": 0.2}

    async def truth(self):
        return {str(n): p["title"] for n, p in self.fake.pulls.items()}

    async def post(self, count):
        return [str(self.fake.put()) for _ in range(count)]

    async def edit(self, key):
        self.fake.put(int(key), title=f"edited {key}")

    async def limit(self, seconds):
        self.fake.answers.append((403, {"Retry-After": str(seconds)}, {"message": "You have exceeded a secondary rate limit."}))


class Stood(Subject):
    """The stand-in, which validates the query against GitHub's schema."""

    kind = "github"
    shared = True
    deletions = False
    repo = "octo/contract"

    async def start(self):
        (self.folder / "pulls.jsonl").write_text(json.dumps({"repo": self.repo, "prs": 40}))
        self.service = await asyncio.to_thread(standin, "github", "--data", str(self.folder / "pulls.jsonl"))
        self._clock = dt.datetime.now(dt.UTC).replace(microsecond=0)

    async def stop(self):
        await asyncio.to_thread(self.service.stop)

    def name(self):
        return f"github:{self.repo}"

    def spec(self):
        (self.folder / "token").write_text(TOKEN)
        return {"kind": "github", "token_file": str(self.folder / "token"), "base_url": self.service.url, "every": 0.2}

    async def truth(self):
        """Asked in another way than the source does: by number."""
        asked = '{ repository(owner: "octo", name: "contract") { pullRequests(first: 100) { nodes { number title } } } }'
        async with httpx.AsyncClient() as client:
            answer = await client.post(f"{self.service.url}/graphql", json={"query": asked}, headers={"Authorization": "token other"})
        return {str(n["number"]): n["title"] for n in answer.json()["data"]["repository"]["pullRequests"]["nodes"]}

    async def _put(self, number, **fields):
        self._clock += dt.timedelta(seconds=1)
        await asyncio.to_thread(self.service.do, "pulls", repo=self.repo, number=number, updatedAt=iso(self._clock), **fields)

    async def post(self, count):
        last = max(map(int, await self.truth()))
        for number in range(last + 1, last + 1 + count):
            await self._put(number, createdAt=iso(self._clock), title=f"posted {number}")
        return [str(n) for n in range(last + 1, last + 1 + count)]

    async def edit(self, key):
        await self._put(int(key), title=f"edited {key}")

    async def limit(self, seconds):
        await asyncio.to_thread(self.service.fault, do="rate_limited", seconds=seconds, where="UPDATED_AT")


SUBJECTS = [Github, Stood]
