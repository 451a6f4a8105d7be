"""webhook: POST of JSON with the header Idempotency-Key, signed where a secret is given."""

from __future__ import annotations

import hashlib
import hmac
import time
from urllib.parse import quote, urlsplit

import orjson
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from worker.core.errors import Misconfigured
from worker.core.models import Delivery, Receipt
from worker.sinks import Policy, sink
from worker.sinks.http import Answer, Receiver, from_env

_LONGEST_KEY = 255


class WebhookOptions(BaseModel):
    """`[effects.KIND]` with sink webhook."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    url: str | None = Field(None, description="where to; an effect's target is put, percent-encoded, at {target}")
    url_env: str | None = Field(None, description="environment variable that holds the url, where the url is a secret")
    headers: dict[str, SecretStr] = Field(default_factory=dict)
    secret_env: str | None = Field(None, description="environment variable with the secret that signs `timestamp.body`")
    timeout: float = Field(10.0, gt=0)
    honours_key: bool = Field(True, description="the receiver does nothing twice for one Idempotency-Key")


def idempotency_key(key: str) -> str:
    """The key itself where a header can carry it, else its digest: two keys never look the same."""
    if key.isascii() and key.isprintable() and key == key.strip() and 0 < len(key) <= _LONGEST_KEY:
        return key
    return f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"


def _policy(options: WebhookOptions) -> Policy:
    return "idempotent" if options.honours_key else "never_twice"


@sink("webhook", WebhookOptions, _policy)
class Webhook:
    """One client for all deliveries of the kind."""

    def __init__(self, kind: str, options: WebhookOptions) -> None:
        if bool(options.url) == bool(options.url_env):
            raise Misconfigured(f"effects.{kind}: a webhook needs either url or url_env", f"set one of them in [effects.{kind}]")
        self._url = options.url or from_env(kind, options.url_env or "").get_secret_value()
        self._secret = from_env(kind, options.secret_env) if options.secret_env else None
        self._headers = {"content-type": "application/json"} | _plain(kind, options.headers)
        parts = urlsplit(self._url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise Misconfigured(f"effects.{kind}: the url of the webhook is not usable", "write it as https://host/path")
        secrets = [h.get_secret_value() for h in options.headers.values()]
        secrets += [self._url, parts.path, parts.query, parts.password or ""] if options.url_env else [parts.password or ""]
        self._receiver = Receiver(parts.hostname, options.timeout, secrets)
        self.timeout = options.timeout
        self.close = self._receiver.close

    async def send(self, delivery: Delivery) -> Receipt:
        content = orjson.dumps({
            "key": delivery.key, "kind": delivery.kind, "target": delivery.target, "source": delivery.source,
            "external_id": delivery.external_id, "body": delivery.body,
        })  # fmt: skip
        headers = self._headers | {"Idempotency-Key": idempotency_key(delivery.key)} | self._signature(content)
        url = self._url.replace("{target}", quote(delivery.target, safe=""))
        return await self._receiver.post(url, content, headers, delivery.policy, _read)

    def _signature(self, content: bytes) -> dict[str, str]:
        if self._secret is None:
            return {}
        stamp = str(int(time.time()))
        signature = hmac.new(self._secret.get_secret_value().encode(), stamp.encode() + b"." + content, hashlib.sha256).hexdigest()
        return {"X-Tailrace-Timestamp": stamp, "X-Tailrace-Signature": f"sha256={signature}"}


def _plain(kind: str, headers: dict[str, SecretStr]) -> dict[str, str]:
    """The headers as text. Raises Misconfigured, without the value, where HTTP cannot carry one."""
    for name, value in headers.items():
        if not (name.isascii() and name.isprintable() and value.get_secret_value().isascii() and value.get_secret_value().isprintable()):
            raise Misconfigured(f"effects.{kind}: the header {name!r} has characters that HTTP cannot carry", "printable ASCII, in one line")
    return {name: value.get_secret_value() for name, value in headers.items()}


def _read(answer: Answer, usual: Receipt) -> Receipt:
    """A 2xx is enough; the receiver's own id of it is in the body or in a header."""
    if usual.outcome != "sent":
        return usual
    remote = answer.json.get("id", answer.headers.get("x-request-id"))
    return Receipt("sent", remote_id=None if remote is None else str(remote))
