"""What of a message is its content: told alike by the API and by an export of Telegram Desktop, so that both give one digest.

It counts: the text with its styles and links, the kind and measures of photos and files (bytes, width, height, seconds, type), contacts,
places, polls and lists, the texts and links of buttons, the name and title of a service action. It does not count what only one of the two
tells (ids of files, data of buttons) and what changes by itself: views, forwards, reactions, replies, previews of pages, names of authors.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import orjson

from collector.record import digest_of

Content = list[Any]

STYLES = {
    "Mention": "mention", "Hashtag": "hashtag", "BotCommand": "bot_command", "Url": "link", "Email": "email", "Bold": "bold",
    "Italic": "italic", "Code": "code", "Pre": "pre", "TextUrl": "text_link", "MentionName": "mention_name", "Phone": "phone",
    "Cashtag": "cashtag", "Underline": "underline", "Strike": "strikethrough", "Blockquote": "blockquote", "BankCard": "bank_card",
    "Spoiler": "spoiler", "CustomEmoji": "custom_emoji", "Unknown": "unknown",
}  # fmt: skip
ACTIONS = {
    "ChatCreate": "create_group", "ChatEditTitle": "edit_group_title", "ChatEditPhoto": "edit_group_photo",
    "ChatDeletePhoto": "delete_group_photo", "ChatAddUser": "invite_members", "ChatDeleteUser": "remove_members",
    "ChatJoinedByLink": "join_group_by_link", "ChatJoinedByRequest": "join_group_by_request", "ChannelCreate": "create_channel",
    "ChatMigrateTo": "migrate_to_supergroup", "ChannelMigrateFrom": "migrate_from_group", "PinMessage": "pin_message",
    "HistoryClear": "clear_history", "GameScore": "score_in_game", "PhoneCall": "phone_call", "ScreenshotTaken": "take_screenshot",
    "GeoProximityReached": "proximity_reached", "GroupCall": "group_call", "InviteToGroupCall": "invite_to_group_call",
    "GroupCallScheduled": "group_call_scheduled", "SetMessagesTTL": "set_messages_ttl", "SetChatTheme": "edit_chat_theme",
    "TopicCreate": "topic_created", "TopicEdit": "topic_edit", "ContactSignUp": "joined_telegram",
}  # fmt: skip
UNSUPPORTED: Content = ["unsupported"]


def digest(content: Content) -> bytes:
    try:
        return digest_of(orjson.dumps(content))
    except TypeError:  # deeper than orjson writes, a number of more than 64 bits
        return digest_of(json.dumps(content).encode())


def of_message(message: Any) -> Content:
    """Of Telethon's Message or MessageService."""
    if (action := getattr(message, "action", None)) is not None:
        name = type(action).__name__.removeprefix("MessageAction")
        return ["service", ACTIONS.get(name, name), getattr(action, "title", None) or None, getattr(action, "duration", None) or None]
    kind = type(message.media).__name__.removeprefix("MessageMedia")
    if kind == "Unsupported":
        return UNSUPPORTED
    told: Content = ["message", _parts(message.message or "", message.entities or ()), _media(kind, message.media), _buttons(message.reply_markup)]
    rich = getattr(message, "rich_message", None)
    return [*told, [str(block) for block in rich.blocks]] if rich is not None else told


def _parts(text: str, entities: Any) -> Content:
    """The text cut at its entities; of those that overlap the first one counts, as in an export."""
    if not entities:
        return [["plain", text]] if text else []
    wide, at, parts = text.encode("utf-16-le", "surrogatepass"), 0, []  # offsets count units of UTF-16

    def piece(start: int, end: int) -> str:
        return wide[2 * start : 2 * end].decode("utf-16-le", "replace")

    for entity in entities:
        if entity.offset < at or entity.length <= 0:
            continue
        if entity.offset > at:
            parts.append(["plain", piece(at, entity.offset)])
        at = entity.offset + entity.length
        name = type(entity).__name__.removeprefix("MessageEntity")
        more = [v for key in ("url", "language", "user_id") if (v := getattr(entity, key, None))]
        parts.append([STYLES.get(name, name), piece(entity.offset, at), *more])
    return [p for p in (*parts, ["plain", piece(at, len(wide))]) if p[1]]


def _media(kind: str, media: Any) -> Content | None:
    """None where there is none, and for kinds that an export does not tell: previews of pages, dice, stories, giveaways."""
    return _MEDIA[kind](media) if kind in _MEDIA else None


def said(text: Any) -> str:
    return str(getattr(text, "text", text))


def contact(first: str | None, last: str | None, phone: str | None) -> Content:
    return ["contact", first or "", last or "", re.sub(r"\D", "", phone or "")]


def place(latitude: float | None, longitude: float | None) -> Content:
    return ["geo"] if latitude is None or longitude is None else ["geo", f"{latitude:.6g}", f"{longitude:.6g}"]


def _largest(photo: Any) -> Content:
    """Bytes, width and height of the largest size."""
    sizes = [s for s in getattr(photo, "sizes", ()) if hasattr(s, "w")]
    if not sizes:
        return [None, None, None]
    best = max(sizes, key=lambda s: s.w * s.h)
    size = best.sizes[-1] if getattr(best, "sizes", None) else getattr(best, "size", None) or len(getattr(best, "bytes", b""))
    return [size or None, best.w, best.h]


def _document(document: Any) -> Content:
    found: dict[str, Any] = {type(a).__name__.removeprefix("DocumentAttribute"): a for a in getattr(document, "attributes", ())}
    video, audio, image = found.get("Video"), found.get("Audio"), found.get("ImageSize")
    sticker = found.get("Sticker") or found.get("CustomEmoji")
    kind = (
        "sticker" if sticker else "video_message" if video and video.round_message else "voice_message" if audio and audio.voice
        else "animation" if "Animated" in found else "video_file" if video else "audio_file" if audio else "file"
    )  # fmt: skip
    sized, seconds = video or image, getattr(video or audio, "duration", 0)
    mime = None if sticker else getattr(document, "mime_type", None) or None
    width, height = getattr(sized, "w", None) or None, getattr(sized, "h", None) or None
    return [kind, getattr(document, "size", None) or None, mime, int(seconds) or None, width, height, getattr(sticker, "alt", None) or None]


def _buttons(markup: Any) -> Content | None:
    if type(markup).__name__ != "ReplyInlineMarkup":
        return None
    return [[[b.text, getattr(b, "url", None) or getattr(getattr(b, "type", None), "url", None) or ""] for b in r.buttons] for r in markup.rows]


_MEDIA: dict[str, Callable[[Any], Content]] = {
    "Photo": lambda m: ["photo", *_largest(m.photo)],
    "Document": lambda m: _document(m.document),
    "Contact": lambda m: contact(m.first_name, m.last_name, m.phone_number),
    "Geo": lambda m: place(getattr(m.geo, "lat", None), getattr(m.geo, "long", None)),
    "GeoLive": lambda _: ["live"],
    "Venue": lambda m: ["venue", m.title, m.address],
    "Game": lambda m: ["game", m.game.title],
    "Invoice": lambda _: ["invoice"],
    "Poll": lambda m: ["poll", said(m.poll.question), bool(m.poll.closed), [said(a.text) for a in m.poll.answers if hasattr(a, "text")]],
    "ToDo": lambda m: ["todo", said(m.todo.title), [said(item.title) for item in m.todo.list]],
}
