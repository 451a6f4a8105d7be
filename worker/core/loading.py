"""Modules by a name that somebody wrote into a configuration."""

from __future__ import annotations

import importlib
from types import ModuleType


def module(name: str) -> ModuleType:
    """Imports it. Raises ImportError, also for what can be no name of a module."""
    if not all(part.isidentifier() for part in name.split(".")):
        raise ImportError(f"{name!r} is no name of a module")
    return importlib.import_module(name)
