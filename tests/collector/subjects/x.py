"""X: a service of the test's own whose edits are new ids, as the real one's, and the stand-in, whose edits keep the id."""

from __future__ import annotations

import asyncio
import datetime as dt
import itertools
import json
import time

from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from collector.sources.x_posts import snowflake
from tests.collector.contract import Subject, standin
from tests.collector.local import Local

TOKEN = "bearer-of-the-test"
AUTHOR = {"id": "77", "username": "harbour_office", "name": "Harbour Office", "public_metrics": {"followers_count": 1}}


class FakeX:
    """Accounts and posts in memory. Counters differ in every answer. `coming` holds refusals for the next calls: (status, headers, body)."""

    def __init__(self):
        self.posts, self.calls, self.coming, self.gate = {}, [], [], None
        self._ids, self._reads = itertools.count(), itertools.count(1)
        self.reach, self.errors, self.holes = 3200, {}, 0
        routes = [
            Route("/2/users/by/username/{name}", self._user),
            Route("/2/users/{id}/tweets", self._list),
            Route("/2/tweets/search/recent", self._list),
        ]
        self.app = Starlette(routes=routes)

    def add(self, text, at=None, **more):
        """A post; returns its id, which is its time."""
        when = at or dt.datetime.now(dt.UTC)
        when = when.replace(microsecond=when.microsecond // 1000 * 1000)
        number = snowflake(when)
        while str(number) in self.posts:
            number += 1
        self.posts[str(number)] = {
            "id": str(number), "text": text, "author_id": "77", "edit_history_tweet_ids": [str(number)], "lang": "en",
            "created_at": when.strftime("%Y-%m-%dT%H:%M:%S.") + f"{when.microsecond // 1000:03d}Z", **more,
        }  # fmt: skip
        return str(number)

    def edit(self, key, text):
        """A new id takes the place of the newest of the post's."""
        old = next(p for p in self.posts.values() if p["edit_history_tweet_ids"][0] == key)
        del self.posts[old["id"]]
        new = self.add(text)
        self.posts[new]["edit_history_tweet_ids"] = [*old["edit_history_tweet_ids"], new]

    def delete(self, key):
        self.posts = {i: p for i, p in self.posts.items() if key not in p["edit_history_tweet_ids"]}

    def reads(self):
        """Queries of the lists that were read."""
        return [query for path, query in self.calls if "/by/" not in path]

    async def _before(self, request):
        self.calls.append((request.url.path, dict(request.query_params)))
        if self.gate is not None:
            await self.gate.wait()
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return self._said({"title": "Unauthorized", "status": 401, "detail": f"{request.headers.get('authorization')} is not known"}, 401)
        if self.coming:
            status, headers, body = self.coming.pop(0)
            return Response(body if isinstance(body, str | bytes) else json.dumps(body), status, headers)
        return None

    def _said(self, what, status=200):
        reset = {"x-rate-limit-limit": "900", "x-rate-limit-remaining": str(900 - len(self.calls)), "x-rate-limit-reset": str(int(time.time()) + 900)}
        return Response(json.dumps(what), status, reset, "application/json")

    async def _user(self, request):
        refused = await self._before(request)
        name = request.path_params["name"]
        metrics = {"public_metrics": AUTHOR["public_metrics"] | {"tweet_count": len(self.posts)}}
        return refused or self._said(self.errors.get(name) or {"data": AUTHOR | metrics})

    async def _list(self, request):
        if refused := await self._before(request):
            return refused
        q = request.query_params
        if request.path_params.get("id") in self.errors:
            return self._said(self.errors[request.path_params["id"]])
        least = 5 if "id" in request.path_params else 10
        size = int(q.get("max_results", 10))
        if not least <= size <= 100:
            problem = {"message": f"max_results {size} is not between {least} and 100", "parameters": {"max_results": [str(size)]}}
            return self._said({"errors": [problem], "title": "Invalid Request", "detail": "One or more parameters to your request was invalid."}, 400)
        newest = sorted(self.posts.values(), key=lambda p: -int(p["id"]))[: self.reach]
        fit = [p for p in newest if int(q.get("since_id", 0)) < int(p["id"]) < int(q.get("until_id", 2**63))]
        return self._said(self._page(fit, size, q.get("pagination_token") or q.get("next_token")))

    def _page(self, fit, size, token):
        if token is None and self.holes and fit:
            self.holes -= 1
            return {"meta": {"result_count": 0, "next_token": "t0"}}
        first = int(token[1:]) if token else 0
        posts = [p | {"public_metrics": {"like_count": next(self._reads)}} for p in fit[first : first + size]]
        meta = {"result_count": len(posts)} | ({"next_token": f"t{first + size}"} if len(fit) > first + size else {})
        return {"data": posts, "includes": {"users": [AUTHOR]}, "meta": meta} if posts else {"meta": meta}


class X(Subject):
    kind = "x"

    async def start(self):
        self.fake = FakeX()
        self.local = await Local(self.fake.app).start()
        (self.folder / "token").write_text(TOKEN + "\n")
        self._count = itertools.count()
        now = dt.datetime.now(dt.UTC)
        for n in range(130, 0, -1):
            self.fake.add(f"notice {n}", now - dt.timedelta(minutes=20 * n))

    async def stop(self):
        await self.local.stop()

    def name(self):
        return "x:harbour_office"

    def spec(self):
        return {"kind": "x", "token_file": str(self.folder / "token"), "base_url": self.local.url, "every": 0.2}

    async def truth(self):
        return {p["edit_history_tweet_ids"][0]: p["text"] for p in self.fake.posts.values()}

    async def post(self, count):
        return [self.fake.add(f"news {next(self._count)}") for _ in range(count)]

    async def edit(self, key):
        self.fake.edit(key, f"edited {next(self._count)}")

    async def delete(self, key):
        self.fake.delete(key)

    async def limit(self, seconds):
        headers = {"x-rate-limit-remaining": "0", "x-rate-limit-reset": str(int(time.time() + seconds + 1))}
        self.fake.coming.append((429, headers, {"title": "Too Many Requests", "status": 429}))


class Search(X):
    """A recent search."""

    def name(self):
        return "x:harbours"

    def spec(self):
        return super().spec() | {"query": "harbour -is:retweet"}


class XStandin(X):
    """The stand-in edits in place: same id, another text."""

    shared = True

    async def start(self):
        (self.folder / "token").write_text("any")
        self._count, self._truth = itertools.count(), {}
        now = dt.datetime.now(dt.UTC)
        with (self.folder / "posts.jsonl").open("w") as file:
            for n in range(130, 0, -1):
                file.write(json.dumps(self._row(f"notice {n}", now - dt.timedelta(minutes=20 * n))) + "\n")
        self.x = await asyncio.to_thread(standin, "x", "--data", self.folder / "posts.jsonl")

    def _row(self, text, at):
        key = str(snowflake(at) + next(self._count))
        self._truth[key] = text
        return {"username": "harbour_office", "text": text, "id": key, "created_at": at.isoformat(timespec="milliseconds")}

    async def stop(self):
        await asyncio.to_thread(self.x.stop)

    def spec(self):
        return super().spec() | {"base_url": self.x.url}

    @property
    def local(self):
        return self.x

    async def truth(self):
        return dict(self._truth)

    async def _put(self, rows):
        await asyncio.to_thread(self.x.control, "tweets", rows)

    async def post(self, count):
        rows = [self._row(f"news {next(self._count)}", dt.datetime.now(dt.UTC)) for _ in range(count)]
        await self._put(rows)
        return [row["id"] for row in rows]

    async def edit(self, key):
        self._truth[key] = f"edited {next(self._count)}"
        await self._put(
            [
                {
                    "username": "harbour_office",
                    "text": self._truth[key],
                    "id": key,
                    "created_at": dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds"),
                }
            ]
        )

    async def delete(self, key):
        del self._truth[key]
        await asyncio.to_thread(self.x.do, "delete", ids=[key])

    async def limit(self, seconds):
        await asyncio.to_thread(lambda: self.x.fault(do="rate_limited", seconds=seconds))


SUBJECTS = [X, Search, XStandin]
