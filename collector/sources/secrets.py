"""Credentials of sources: from the environment or from a file, never from the configuration, never shown."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import SecretStr

from worker.core.errors import Misconfigured


def secret(source: str, what: str, env: str | None, file: str | None) -> SecretStr | None:
    """The secret that `env` or `file` holds, or None where neither is named. Raises Misconfigured where it is named and not there.

    `what` says what it is for, in messages: "the token", "the shared secret".
    """
    if not env and not file:
        return None
    where = f"the environment variable {env}" if env else f"the file {file}"
    try:
        value = os.environ.get(env, "").strip() if env else Path(str(file)).expanduser().read_text().strip()
    except (OSError, ValueError) as error:
        raise Misconfigured(f"sources.{source}: cannot read {where}: {error}", f"it must hold {what}") from error
    if not value:
        raise Misconfigured(f"sources.{source}: {where} is not set or empty", f"it must hold {what}")
    return SecretStr(value)
