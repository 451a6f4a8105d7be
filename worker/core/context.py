"""What a processor may know besides the record."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from worker.core.models import Outage


@dataclass(frozen=True, slots=True)
class Context:
    """What a processor may know besides the record."""

    pipeline: str
    version: str
    options: Any = None
    attempt: int = 0
    lane: int = 0
    model: str | None = None
    prompt: str | None = None

    def render(self, **values: str) -> str:
        """The prompt with each `{name}` replaced by its value; other braces stay. Raises Outage where the prompt has no such place:
        a prompt that lost its input asks about nothing, and costs as much.
        """
        text = self.prompt or ""
        for name in values:
            if "{" + name + "}" not in text:
                raise Outage(f"the prompt of {self.pipeline} {self.version} has no {{{name}}}: it would be asked without its input", 3600)
        parts = re.split("({" + "}|{".join(map(re.escape, values)) + "})", text) if values else [text]
        return "".join(values.get(part[1:-1], part) if part.startswith("{") else part for part in parts)
