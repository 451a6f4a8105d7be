"""telegram: sendMessage and editMessageText of the Bot API over plain HTTP. The API knows no idempotency key, so an unknown outcome waits
for a person unless the kind says never_lost.
"""

from __future__ import annotations

import re
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, Field

from worker.core.errors import Misconfigured
from worker.core.models import Delivery, Receipt
from worker.sinks import sink
from worker.sinks.http import Answer, Receiver, ambiguous, bounded, from_env


class TelegramOptions(BaseModel):
    """`[effects.KIND]` with sink telegram."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    token_env: str = Field("TELEGRAM_BOT_TOKEN", description="environment variable that holds the bot's token")
    chat_id: str | int | None = Field(None, description="where to; an effect's target goes before it")
    base_url: str = Field("https://api.telegram.org", description="another one for a Bot API server of your own")
    parse_mode: str | None = Field(None, description="HTML or MarkdownV2; left out, the text is sent as it is")
    timeout: float = Field(20.0, gt=0)


@sink("telegram", TelegramOptions, lambda _options: "never_twice", edits=True)
class Telegram:
    """One bot. The token is in the address, so no message shows the address."""

    def __init__(self, kind: str, options: TelegramOptions) -> None:
        token = from_env(kind, options.token_env).get_secret_value()
        if not re.fullmatch(r"\d+:[\w-]+", token, re.ASCII):
            raise Misconfigured(f"effects.{kind}: {options.token_env} is not the token of a bot", "it looks like 123456:ABC-DEF")
        self._url = f"{options.base_url.rstrip('/')}/bot{token}/"
        self._o = options
        self._receiver = Receiver("the Bot API", options.timeout, [token, token.partition(":")[2]])
        self._moved: dict[str, str] = {}
        self.timeout = options.timeout
        self.close = self._receiver.close

    async def send(self, delivery: Delivery) -> Receipt:
        chat = delivery.target or str(self._o.chat_id or "")
        if not chat:
            return Receipt("failed", detail="no chat: the effect names no target and the kind no chat_id")
        text = delivery.body.get("text") if isinstance(delivery.body, dict) else delivery.body
        if not isinstance(text, str) or not text.strip():
            return Receipt("failed", detail="the body has no text")
        message = {"chat_id": self._moved.get(chat, chat), "text": text} | ({"parse_mode": self._o.parse_mode} if self._o.parse_mode else {})
        message |= {"message_id": delivery.edits} if delivery.edits else {}

        def read(answer: Answer, usual: Receipt) -> Receipt:
            return self._read(answer, usual, chat, delivery.policy)

        url = self._url + ("editMessageText" if delivery.edits else "sendMessage")
        return await self._receiver.post(url, orjson.dumps(message), {"content-type": "application/json"}, delivery.policy, read)

    def _read(self, answer: Answer, usual: Receipt, chat: str, policy: str) -> Receipt:
        """429 says in the body how long to wait; a group that moved says where it is now; a 200 still has to say ok."""
        said = answer.json
        parameters = _mapping(said.get("parameters"))
        detail = f"the Bot API answered {answer.status}: {self._receiver.hidden(str(said.get('description', 'nothing readable')))[:300]}"
        if (moved := parameters.get("migrate_to_chat_id")) is not None:
            self._moved[chat] = str(moved)
            return Receipt("retry", detail=f"the chat is now {moved}", after=0.0)
        if (wait := bounded(parameters.get("retry_after"))) is not None:
            return Receipt("retry", detail=detail, after=wait)
        if "message is not modified" in str(said.get("description", "")):  # an edit whose answer was lost
            return Receipt("sent", detail=detail)
        if usual.outcome != "sent":
            return Receipt(usual.outcome, detail=detail, after=usual.after) if "description" in said else usual
        if said.get("ok") is True:
            number = _mapping(said.get("result")).get("message_id")
            return Receipt("sent", remote_id=None if number is None else str(number))
        return Receipt("failed" if said.get("ok") is False else ambiguous(policy), detail=detail)


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
