"""A feed on a server of the test's own. Entries that vanish are no deletions: old ones leave every feed."""

from __future__ import annotations

import datetime as dt
import email.utils
import gzip
import hashlib
import itertools
from xml.sax.saxutils import escape

from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from tests.collector.contract import Subject
from tests.collector.local import Local

RSS = "application/rss+xml; charset=utf-8"


class FakeFeed:
    """Serves `body` (or what `answers` has for the path) with validators. `coming` holds answers for the next calls: (status, headers, body)."""

    def __init__(self):
        self.body, self.answers, self.coming, self.calls = b"", {}, [], []
        self.headers, self.validators, self.gate = {}, True, None
        self.app = Starlette(routes=[Route("/{path:path}", self._serve)])

    def serve(self, text):
        self.body = text.encode() if isinstance(text, str) else text
        self.modified = email.utils.format_datetime(dt.datetime.now(dt.UTC), usegmt=True)

    async def _serve(self, request):
        self.calls.append((request.url.path, dict(request.headers)))
        if self.gate is not None:
            await self.gate.wait()
        if self.coming:
            status, headers, body = self.coming.pop(0)
            return Response(body, status, headers)
        if found := self.answers.get(request.url.path):
            return Response(found[2], found[0], found[1])
        tag = f'"{hashlib.sha256(self.body).hexdigest()[:12]}"'
        known = {"etag": tag, "last-modified": self.modified} if self.validators else {}
        asked = request.headers.get("if-none-match"), request.headers.get("if-modified-since")
        if known and (asked[0] == tag or (asked[0] is None and asked[1] == self.modified)):
            return Response(None, 304, {**known, **self.headers})
        headers = {"content-type": RSS, **known, **self.headers}
        if "gzip" in request.headers.get("accept-encoding", ""):
            return Response(gzip.compress(self.body), 200, {**headers, "content-encoding": "gzip"})
        return Response(self.body, 200, headers)


def item(key, title, at, more=""):
    return (
        f'<item><guid isPermaLink="false">{escape(key)}</guid><title>{escape(title)}</title><link>https://harbour.example/{escape(key)}</link>'
        f"<pubDate>{email.utils.format_datetime(at)}</pubDate>{more}</item>"
    )


def feed(*items, more="", root='<rss version="2.0">'):
    return f'<?xml version="1.0" encoding="utf-8"?>{root}<channel><title>Harbour</title><link>https://harbour.example/</link>{more}{"".join(items)}</channel></rss>'


class Rss(Subject):
    kind = "rss"
    deletions = False

    async def start(self):
        self.fake = FakeFeed()
        self.local = await Local(self.fake.app).start()
        self._count, self._truth = itertools.count(), {}
        await self.post(40)

    async def stop(self):
        await self.local.stop()

    def name(self):
        return f"rss:{self.local.url}/feed.xml"

    def spec(self):
        return {"kind": "rss", "every": 0.2}

    async def truth(self):
        return {key: title for key, (title, _) in self._truth.items()}

    def _publish(self):
        items = [item(key, title, at) for key, (title, at) in reversed(self._truth.items())]
        self.fake.serve(feed(*items, more=f"<lastBuildDate>{dt.datetime.now(dt.UTC)}</lastBuildDate>"))

    async def post(self, count):
        keys = [f"berth-{next(self._count)}" for _ in range(count)]
        now = dt.datetime.now(dt.UTC)
        self._truth |= {key: (f"arrival {key}", now + dt.timedelta(seconds=n)) for n, key in enumerate(keys)}
        self._publish()
        return keys

    async def edit(self, key):
        self._truth[key] = (f"departure {key}", self._truth[key][1])
        self._publish()

    async def delete(self, key):
        """It is still in raw, and in no truth that anybody could tell from the feed."""

    async def limit(self, seconds):
        self.fake.coming.append((429, {"retry-after": str(int(seconds))}, b"slowly"))


SUBJECTS = [Rss]
