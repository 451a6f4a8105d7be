"""Where an account lives: from its handle or DID to its DID and the host of its repository."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

from collector.sources.answers import Denied
from collector.sources.bluesky_client import Client, Missing

_SERVICE = "#atproto_pds"


class Home:
    """Of one account. What was found is kept until `forget`; a DID, once known, stays: a handle may come to name somebody else."""

    def __init__(self, name: str, path: str, client: Client, *, pds: str | None, plc: str, resolver: str) -> None:
        self.did = path if path.startswith("did:") else ""
        self._name, self._path, self._client = name, path, client
        self._fixed, self._plc, self._resolver = pds, plc, resolver
        self._pds = pds or ""

    def pin(self, did: Any) -> None:
        """The account was this one when a position was stored."""
        if isinstance(did, str) and did.startswith("did:"):
            self.did = did

    async def find(self) -> tuple[str, str]:
        """DID and address of the host. Raises Denied where there is no such account."""
        did = await self.who()
        if not self._pds:
            self._pds = await self._hosted()
        return did, self._pds

    async def who(self) -> str:
        """The DID alone. Raises Denied."""
        if not self.did:
            self.did = await self._resolved()
        return self.did

    async def moved(self) -> bool:
        """Asks again; whether the account lives elsewhere now."""
        if self._fixed or not self._pds:
            return False
        before, self._pds = self._pds, ""
        return (await self.find())[1] != before

    def forget(self) -> None:
        """What was found may no longer hold."""
        self._pds = self._fixed or ""

    async def _resolved(self) -> str:
        try:
            answer = await self._client.call(self._fixed or self._resolver, "com.atproto.identity.resolveHandle", handle=self._path)
            return str(answer["did"])
        except (Missing, KeyError, TypeError) as error:
            raise Denied(self._name, f"nobody has the handle {self._path!r}: {error}", "check the name; a DID does not change") from error

    async def _hosted(self) -> str:
        try:
            document = await self._client.json(self._document(), {})
        except Missing as error:
            raise Denied(self._name, f"there is no account {self.did}: {error}", "check the name of the source, and `plc`") from error
        listed = document.get("service") if isinstance(document, dict) else None
        for service in listed if isinstance(listed, list) else ():
            if isinstance(service, dict) and str(service.get("id", "")).endswith(_SERVICE):
                return str(service.get("serviceEndpoint")).rstrip("/")
        raise Denied(self._name, f"{self.did} names no host of its repository", "the account was given up, or lives outside of the network")

    def _document(self) -> str:
        if self.did.startswith("did:web:"):
            return f"https://{unquote(self.did.removeprefix('did:web:'))}/.well-known/did.json"
        return f"{self._plc}/{self.did}"
