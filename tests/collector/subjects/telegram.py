"""A channel: at a service of messages in this process, which stands behind the seam of the client library, and at the stand-in."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from types import SimpleNamespace

from telethon import errors, functions, types
from telethon.crypto import AuthKey
from telethon.sessions import StringSession

from collector.sources import telegram_client
from tests.collector.contract import Subject, standin

CHANNEL = 1234567
BEGAN = dt.datetime(2026, 3, 1, 8, 0, tzinfo=dt.UTC)


def session(number: int) -> str:
    """A StringSession that is signed in, nowhere."""
    made = StringSession()
    made.set_dc(2, "127.0.0.1", 9)
    made.auth_key = AuthKey(b"".join(hashlib.sha512(bytes([number, i])).digest() for i in range(4)))
    return made.save()


class Service:
    """One channel with its messages and its count of events, as the service keeps them; clients are connected to it."""

    def __init__(self, *, member=True):
        self.peer, self.member = types.PeerChannel(CHANNEL), member
        self.messages, self.pts, self.last = {}, 1, 0
        self.clients, self.asked = [], []
        self.refusals, self.lookups = [], []  # errors for the next calls of history, and of names
        self.members, self.listed = True, 0  # whether the channel is in the list of what is joined, how often that was asked for
        self.down = False

    async def connect(self, who, ear, gone, *, news):
        if self.down:
            raise ConnectionRefusedError("the service is down")
        client = Client(self, who, ear, gone, news)
        self.clients.append(client)
        return client

    def store(self, text, *, date=None, quiet=False, **fields):
        self.last += 1
        date = date or dt.datetime.now(dt.UTC).replace(microsecond=0)
        message = types.Message(id=self.last, peer_id=self.peer, date=date, message=text, post=True, views=1, **fields)
        self.messages[self.last] = message
        self._event(types.UpdateNewChannelMessage, message, quiet)
        return self.last

    def action(self, action, *, date=None):
        self.last += 1
        date = date or dt.datetime.now(dt.UTC).replace(microsecond=0)
        self.messages[self.last] = types.MessageService(id=self.last, peer_id=self.peer, date=date, action=action)
        return self.last

    def change(self, number, *, quiet=False, **fields):
        old = self.messages[number].to_dict()
        kept = {k: getattr(self.messages[number], k) for k in old if k != "_"} | {"edit_date": dt.datetime.now(dt.UTC).replace(microsecond=0)}
        self.messages[number] = types.Message(**kept | fields)
        self._event(types.UpdateEditChannelMessage, self.messages[number], quiet)

    def remove(self, numbers, *, quiet=False):
        for number in numbers:
            del self.messages[number]
        self.pts += len(numbers)
        if not quiet:
            self.push(types.UpdateDeleteChannelMessages(CHANNEL, list(numbers), self.pts, len(numbers)))

    def _event(self, kind, message, quiet):
        self.pts += 1
        if not quiet:
            self.push(kind(message, self.pts, 1))

    def push(self, update):
        for client in self.clients if self.member else ():
            if client.news:
                client.ear.hear(update)

    def drop(self):
        """Ends all connections."""
        clients, self.clients = self.clients, []
        for client in clients:
            client.gone()

    def history(self, request):
        found = sorted(self.messages.values(), key=lambda m: -m.id)
        if request.offset_id:
            start = sum(m.id >= request.offset_id for m in found)
        else:
            start = sum(m.date >= request.offset_date for m in found) if request.offset_date else 0
        start += request.add_offset
        page = found[max(0, start) : max(0, start + min(request.limit, 100))]
        return types.messages.ChannelMessages(pts=self.pts, count=len(found), messages=page, topics=[], chats=[], users=[])


class Client:
    """What the source uses of a client of the library."""

    def __init__(self, service, who, ear, gone, news):
        self.service, self.who, self.ear, self.gone, self.news = service, who, ear, gone, news

    async def __call__(self, request):
        self.service.asked.append((self.who.label, request))
        if self not in self.service.clients:
            raise ConnectionError("not connected")
        if isinstance(request, functions.contacts.ResolveUsernameRequest):
            return self._resolved(request)
        if isinstance(request, functions.messages.GetHistoryRequest):
            if self.service.refusals:
                raise self.service.refusals.pop(0)
            return self.service.history(request)
        there, numbers = self.service.messages, [i.id for i in request.id]
        found = [there.get(n) or types.MessageEmpty(n, self.service.peer) for n in numbers]
        return types.messages.ChannelMessages(pts=self.service.pts, count=len(found), messages=found, topics=[], chats=[], users=[])

    def _channel(self):
        return types.Channel(
            id=CHANNEL, title="Offers", photo=types.ChatPhotoEmpty(), date=BEGAN, access_hash=5, username="offers", left=not self.service.member
        )

    def _resolved(self, request):
        if self.service.lookups:
            raise self.service.lookups.pop(0)
        if request.username.lower() != "offers":
            raise errors.UsernameNotOccupiedError(request)
        return types.contacts.ResolvedPeer(self.service.peer, [self._channel()], [])

    async def iter_dialogs(self):
        self.service.listed += 1
        if self.service.members:
            yield SimpleNamespace(id=-(10**12) - CHANNEL, entity=self._channel())

    async def disconnect(self):
        if self in self.service.clients:
            self.service.clients.remove(self)


class Telegram(Subject):
    kind = "telegram"

    async def start(self):
        self.service = Service()
        self._real, telegram_client.connect = telegram_client.connect, self.service.connect
        self.service.action(types.MessageActionChannelCreate("Offers"), date=BEGAN)
        for n in range(44):
            self.service.store(f"Offer {n}", date=BEGAN + dt.timedelta(minutes=7 * n), quiet=True)
        self.service.remove([9, 10, 30], quiet=True)

    async def stop(self):
        telegram_client.connect = self._real

    def name(self):
        return "telegram:offers"

    def spec(self):
        for file, text in {"news": session(1), "history": session(2), "hash": "0123456789abcdef"}.items():
            (self.folder / file).write_text(text)
        files = {"session_file": "news", "catchup_session_file": "history", "api_hash_file": "hash"}
        return {"kind": "telegram", "api_id": 1} | {k: str(self.folder / v) for k, v in files.items()}

    async def truth(self):
        return {str(n): getattr(m, "message", None) or "" for n, m in self.service.messages.items()}

    async def post(self, count):
        return [str(self.service.store(f"New offer {self.service.last}")) for _ in range(count)]

    async def edit(self, key):
        self.service.change(int(key), message=f"Edited offer {key} {self.service.pts}")

    async def delete(self, key):
        self.service.remove([int(key)])

    async def limit(self, seconds):
        self.service.refusals.append(errors.FloodWaitError(None, capture=seconds))


class AtStandin(Telegram):
    shared = True

    async def start(self):
        rows = [{"channel": "offers", "title": "Offers", "megagroup": True}]
        rows += [
            {"channel": "offers", "id": n, "text": f"Offer {n}" if n % 9 else "", "date": 1772352000 + 400 * n, "sender": "ann"}
            for n in range(1, 60)
            if n % 11
        ]
        (self.folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.service = standin("telegram", "--data", str(self.folder / "data.jsonl"))

    async def stop(self):
        self.service.stop()

    def spec(self):
        made = super().spec()
        for number, file in enumerate(("news", "history")):
            (self.folder / file).write_text(self.service.do("session", user="collector", n=number)["session"])
        return made

    async def truth(self):
        return {str(m["id"]): m["text"] for m in self.service.control("messages", channel="offers")}

    async def post(self, count):
        return [str(n) for n in self.service.do("post", channel="offers", text="New offer {n}", count=count, sender="bob")["ids"]]

    async def edit(self, key):
        self.service.do("edit", channel="offers", id=int(key), text=f"Edited offer {key}")

    async def delete(self, key):
        self.service.do("delete", channel="offers", ids=[int(key)])

    async def limit(self, seconds):
        self.service.fault(do="rpc_error", error=f"FLOOD_WAIT_{seconds}", op="messages.GetHistory")


SUBJECTS = [Telegram, AtStandin]
