"""webhook: POST of JSON with the header Idempotency-Key, signed where a secret is given."""

from __future__ import annotations

import hashlib
import hmac
import os
import time
from urllib.parse import urlsplit

import httpx
import orjson
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from worker.core.errors import Misconfigured
from worker.core.models import Delivery, Receipt
from worker.sinks import Policy, sink
from worker.sinks.http import post


class WebhookOptions(BaseModel):
    """`[effects.KIND]` with sink webhook."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    url: str | None = Field(None, description="where to; an effect's target is put at {target}")
    url_env: str | None = Field(None, description="environment variable that holds the url, where the url is a secret")
    headers: dict[str, str] = Field(default_factory=dict)
    secret_env: str | None = Field(None, description="environment variable with the secret that signs `timestamp.body`")
    timeout: float = Field(10.0, gt=0)
    honours_key: bool = Field(True, description="the receiver does nothing twice for one Idempotency-Key")


def from_env(kind: str, name: str) -> SecretStr:
    value = os.environ.get(name)
    if not value:
        raise Misconfigured(
            f"effects.{kind}: the environment variable {name} is not set", "the gate of this kind is open, so its credential is needed"
        )
    return SecretStr(value)


def _policy(options: WebhookOptions) -> Policy:
    return "idempotent" if options.honours_key else "never_twice"


@sink("webhook", WebhookOptions, _policy)
class Webhook:
    """One client for all deliveries of the kind."""

    def __init__(self, kind: str, options: WebhookOptions) -> None:
        if not options.url and not options.url_env:
            raise Misconfigured(f"effects.{kind}: a webhook needs url or url_env", f"set it in [effects.{kind}]")
        self._url = SecretStr(options.url) if options.url else from_env(kind, options.url_env or "")
        self._shown = urlsplit(self._url.get_secret_value()).hostname or "the receiver"
        self._secret = from_env(kind, options.secret_env) if options.secret_env else None
        self._headers = {"content-type": "application/json", **options.headers}
        self._client = httpx.AsyncClient(timeout=options.timeout, follow_redirects=False)
        self.timeout = options.timeout

    async def send(self, delivery: Delivery) -> Receipt:
        content = orjson.dumps({
            "key": delivery.key, "kind": delivery.kind, "target": delivery.target, "source": delivery.source,
            "external_id": delivery.external_id, "body": delivery.body,
        })  # fmt: skip
        headers = self._headers | {"Idempotency-Key": delivery.key.encode("ascii", "backslashreplace").decode().replace("\n", " ")}
        if self._secret:
            stamp = str(int(time.time()))
            signature = hmac.new(self._secret.get_secret_value().encode(), stamp.encode() + b"." + content, hashlib.sha256).hexdigest()
            headers |= {"X-Tailrace-Timestamp": stamp, "X-Tailrace-Signature": f"sha256={signature}"}
        url = self._url.get_secret_value().replace("{target}", delivery.target)
        return await post(self._client, url, content, headers, delivery.policy, _sent, self._shown)

    async def close(self) -> None:
        await self._client.aclose()


def _sent(response: httpx.Response) -> Receipt:
    try:
        body = orjson.loads(response.content)
    except orjson.JSONDecodeError:
        body = None
    remote = body.get("id") if isinstance(body, dict) else None
    return Receipt("sent", remote_id=None if remote is None else str(remote))
