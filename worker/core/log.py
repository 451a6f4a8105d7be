"""structlog, configured here and nowhere else: JSON lines on stderr, readable on a terminal, never a secret."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

from worker.core import events

_QUIET = frozenset({"job.claimed", "job.settled", "raw.appended", "delivery.sent"})  # one line each at level info
_BAD = frozenset({"step.failed", "source.failed", "processor.failed", "processor.overdue", "claim.lost", "delivery.failed", "delivery.uncertain",
                  "raw.defective", "line.awaited", "database.lost", "webhook.refused", "lease.rescued", "source.limited", "source.denied",
                  "source.refused", "config.refused"})  # fmt: skip
_SPOKEN_FOR = ("telethon",)  # libraries that also log what they raise
_PASSWORD = re.compile(r"(://[^:/@\s]+:)[^@\s]+(@)")
_SECRET_KEY = re.compile(r"secret|password|token$|api_key|authorization", re.IGNORECASE)


def _without_secrets(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key, value in event.items():
        if isinstance(value, str):
            event[key] = _PASSWORD.sub(r"\1***\2", value)
        if _SECRET_KEY.search(key):
            event[key] = "***"
    return event


def configure(program: str, level: str = "info", style: str = "auto") -> None:
    """Sets up logging for this process and subscribes it to the events. `style`: auto, json or text."""
    text = style == "text" or (style == "auto" and sys.stderr.isatty())
    renderer: Any = structlog.dev.ConsoleRenderer() if text else structlog.processors.JSONRenderer(default=str)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _without_secrets,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    for library in _SPOKEN_FOR:
        logging.getLogger(library).addHandler(logging.NullHandler())
    logger = structlog.get_logger().bind(program=program)
    quiet = logging.getLevelNamesMapping()[level.upper()] > logging.INFO

    def write(name: str, fields: dict[str, Any]) -> None:
        if name in _BAD:
            logger.warning(name, **fields)
        elif not (quiet and name in _QUIET):
            logger.info(name, **fields)

    events.subscribe(write)
