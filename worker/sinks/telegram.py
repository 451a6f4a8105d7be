"""telegram: sendMessage of the Bot API over plain HTTP. The API knows no idempotency key, so an unknown outcome waits for a person
unless the kind says never_lost.
"""

from __future__ import annotations

import re
from typing import Any

import httpx
import orjson
from pydantic import BaseModel, ConfigDict, Field

from worker.core.models import Delivery, Receipt
from worker.sinks import sink
from worker.sinks.http import post
from worker.sinks.webhook import from_env

MOST = 4096


class TelegramOptions(BaseModel):
    """`[effects.KIND]` with sink telegram."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    token_env: str = Field("TELEGRAM_BOT_TOKEN", description="environment variable that holds the bot's token")
    chat_id: str | None = Field(None, description="where to; an effect's target goes before it")
    base_url: str = "https://api.telegram.org"
    parse_mode: str | None = None
    timeout: float = Field(20.0, gt=0)


@sink("telegram", TelegramOptions, lambda _options: "never_twice")
class Telegram:
    """One bot."""

    def __init__(self, kind: str, options: TelegramOptions) -> None:
        self._token = from_env(kind, options.token_env)
        self._o = options
        self._client = httpx.AsyncClient(timeout=options.timeout)
        self._moved: dict[str, str] = {}
        self.timeout = options.timeout

    async def send(self, delivery: Delivery) -> Receipt:
        chat = delivery.target or self._o.chat_id
        if not chat:
            return Receipt("failed", detail="no chat: the effect names no target and the kind no chat_id")
        text = delivery.body if isinstance(delivery.body, str) else delivery.body.get("text") if isinstance(delivery.body, dict) else None
        if not isinstance(text, str) or not text:
            return Receipt("failed", detail="the body has no text")
        message: dict[str, Any] = {"chat_id": self._moved.get(chat, chat), "text": text[:MOST]}
        if self._o.parse_mode:
            message["parse_mode"] = self._o.parse_mode
        url = f"{self._o.base_url.rstrip('/')}/bot{self._token.get_secret_value()}/sendMessage"
        receipt = await post(self._client, url, orjson.dumps(message), {"content-type": "application/json"}, delivery.policy, _sent, "the Bot API")
        return self._judged(receipt, chat)

    def _judged(self, receipt: Receipt, chat: str) -> Receipt:
        """429 says in the body how long to wait; a group that moved says where it is now."""
        found = re.search(r"\{.*\}", receipt.detail or "", re.DOTALL)
        try:
            parameters = orjson.loads(found[0]).get("parameters", {}) if found else {}
        except orjson.JSONDecodeError:
            parameters = {}
        if moved := parameters.get("migrate_to_chat_id"):
            self._moved[chat] = str(moved)
            return Receipt("retry", detail=f"the chat is now {moved}", after=0)
        if (wait := parameters.get("retry_after")) is not None:
            return Receipt("retry", detail=receipt.detail, after=float(wait))
        return receipt

    async def close(self) -> None:
        await self._client.aclose()


def _sent(response: httpx.Response) -> Receipt:
    try:
        body = orjson.loads(response.content)
        if body["ok"]:
            return Receipt("sent", remote_id=str(body["result"]["message_id"]))
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return Receipt("uncertain", detail=f"the Bot API answered 200 with {response.text[:200]}")
    return Receipt("failed", detail=f"the Bot API answered ok: false: {response.text[:200]}")
