"""A folder of lines. Lines are only ever added: an edit is a line with a known id."""

from __future__ import annotations

import json

from tests.collector.contract import Subject


class Files(Subject):
    kind = "files"
    limits = False

    async def start(self):
        self._truth, self._next = {}, 0
        await self.post(40)

    async def stop(self):
        """There is no service."""

    def name(self):
        return "files:inbox"

    def spec(self):
        return {"kind": "files", "path": str(self.folder), "id_field": "id", "delete_field": "deleted"}

    async def truth(self):
        return dict(self._truth)

    def _line(self, key, text, **more):
        with (self.folder / "lines.jsonl").open("a") as file:
            file.write(json.dumps({"id": key, "text": text, **more}) + "\n")

    async def post(self, count):
        keys = [str(self._next + n) for n in range(count)]
        self._next += count
        for key in keys:
            self._truth[key] = f"first {key}"
            self._line(key, self._truth[key])
        return keys

    async def edit(self, key):
        self._truth[key] = f"edited {key}"
        self._line(key, self._truth[key])

    async def delete(self, key):
        del self._truth[key]
        self._line(key, "", deleted=True)


SUBJECTS = [Files]
