"""Every setting, its default and its meaning, in one frozen object. Unknown names are refused with the nearest known one.

Order: environment (`TAILRACE_SECTION__NAME`, `DATABASE_URL`) over the file named by `TAILRACE_CONFIG` (default `tailrace.toml`) over defaults.
"""

from __future__ import annotations

import datetime as dt
import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from worker.core.config import Loaded, load
from worker.core.errors import Misconfigured
from worker.core.specs import EffectSpec, PipelineSpec, Seconds, Section, SourceSpec


class DatabaseSettings(Section):
    """How the programs speak to Postgres."""

    pool_size: int = Field(8, ge=2, description="connections per process")
    pooler: Literal["none", "transaction"] = Field("none", description="`transaction` behind PgBouncer: no session state at all")
    prepare: bool = Field(True, description="keep prepared statements")
    set_role: bool = Field(True, description="work under tailrace_collector, tailrace_worker, ...; off where the login already is that role")
    statement_timeout: Seconds = Field(60.0, description="no statement of a daemon runs longer")
    connect_seconds: Seconds = Field(60.0, description="how long to wait for a server that is away at start")


class LogSettings(Section):
    """Logs go to stderr."""

    level: Literal["debug", "info", "warning", "error"] = Field("info", description="least severity shown")
    format: Literal["auto", "json", "text"] = Field("auto", description="auto: text on a terminal, JSON lines elsewhere")


class CollectorSettings(Section):
    """source -> raw."""

    host: str = Field("127.0.0.1", description="address of /healthz, /readyz, /metrics and of webhooks")
    port: int = Field(9401, ge=0, le=65535, description="port of the same; 0 takes a free one")
    page_records: int = Field(1000, ge=1, le=20000, description="most records written in one transaction")
    page_bytes: int = Field(8_000_000, ge=1000, description="most bytes of payload written in one transaction")
    poll_seconds: Seconds = Field(0.5, description="how often a quiet file or feed is looked at")
    heal_seconds: Seconds = Field(3600.0, gt=0, description="how often a source that can miss things looks for gaps, edits and deletions")
    chunk_hours: float = Field(6.0, gt=0, description="how much of a source's time a catch-up reads at once")
    overlap: Seconds = Field(600.0, description="a catch-up begins so much before what is missing: late edits and clocks that differ")
    target_lag: Seconds = Field(0.0, description="how close to now a catch-up goes; what is younger is left to the tail")
    low_watermark: int = Field(10_000, ge=0, description="open records of its own lane above which a catch-up waits")
    chunk_floor: int = Field(10, ge=1, description="least records of a backfill's chunk, whatever the limits say")
    chunk_ceiling: int = Field(5000, ge=1, description="most records of a backfill's chunk")
    chunk_seconds: Seconds = Field(15.0, gt=0, description="how long a chunk should take: what an interruption reads twice at most")
    backfill_min_records: int = Field(100, ge=0, description="smaller sources are no targets of a backfill that names none")
    backfill_complete: float = Field(0.8, ge=0, le=1, description="sources of which so much is stored are no targets of a backfill that names none")
    touch_seconds: Seconds = Field(15.0, description="how often `caught up` is written to the database")
    bells_per_second: float = Field(200.0, ge=0, description="most wake-up calls to workers; 0: workers only poll")


class WorkerSettings(Section):
    """raw -> job -> result -> effect -> delivery."""

    host: str = Field("127.0.0.1", description="address of /healthz, /readyz and /metrics")
    port: int | None = Field(None, ge=0, le=65535, description="port of the same; 0: a free one; default 9402, or a free one where that is taken")
    oneshot: bool = Field(False, description="drain once and exit, as `worker drain`")
    claim_records: int = Field(4000, ge=1, description="most records held at once for one version: what a crash runs twice at most")
    lease_seconds: Seconds = Field(15.0, gt=0, description="a claim without heartbeat comes back after this")
    beat_seconds: Seconds = Field(4.0, gt=0, description="heartbeat interval; at most a third of the lease")
    settle_seconds: Seconds = Field(1.0, description="a long slice settles what is done this often")
    poll_seconds: Seconds = Field(2.0, description="how often an idle worker looks for work without being called")
    watch_seconds: Seconds = Field(1.0, description="interval of the watchdog")
    grace_seconds: Seconds = Field(20.0, description="time to finish what runs after SIGTERM")
    max_crashes: int = Field(5, ge=1, description="a record lost alone with its worker this often is buried")
    max_jobs: int | None = Field(None, ge=1, description="stop after so many records (the process can then be replaced)")
    name: str | None = Field(None, description="shown in jobs.worker; default host:pid")


def _data_dir() -> Path:
    return Path("/var/lib/tailrace/data") if os.geteuid() == 0 else Path.home() / ".local/share/tailrace/data"


class Settings(BaseSettings):
    """The whole configuration of one process."""

    model_config = {"extra": "forbid", "frozen": True}

    database_url: SecretStr | None = Field(None, description="where Postgres is; unset: an embedded one in data_dir")
    data_dir: Path = Field(default_factory=_data_dir, description="folder of the embedded database")
    enqueue: bool = Field(True, description="off: collect raw only, make no jobs")
    pipeline_version: str | None = Field(None, description="run this version instead of the configured one")
    database: DatabaseSettings = DatabaseSettings()
    log: LogSettings = LogSettings()
    collector: CollectorSettings = CollectorSettings()
    worker: WorkerSettings = WorkerSettings()
    sources: dict[str, SourceSpec] = Field(default_factory=dict)
    pipelines: dict[str, PipelineSpec] = Field(default_factory=dict)
    effects: dict[str, EffectSpec] = Field(default_factory=dict)

    @field_validator("sources")
    @classmethod
    def _full_names(cls, sources: dict[str, SourceSpec]) -> dict[str, SourceSpec]:
        """`[sources.inbox]` of kind files is the source `files:inbox`; a quoted name with a colon is taken as it is."""
        return {name if ":" in name else f"{spec.kind}:{name}": spec for name, spec in sources.items()}

    @classmethod
    def settings_customise_sources(  # type: ignore[override]  # only `init`: config.py reads file and environment, with origins
        cls, _settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, **_others: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)

    @property
    def open_gates(self) -> dict[str, EffectSpec]:
        return {kind: spec for kind, spec in self.effects.items() if spec.open}


def read(environ: dict[str, str] | None = None, cwd: Path | None = None) -> tuple[Settings, Loaded]:
    """Settings and where each came from. Raises Misconfigured with what to change."""
    loaded = load(Settings, environ, cwd)
    try:
        settings = Settings(**loaded.values)
        beat, lease = settings.worker.beat_seconds, settings.worker.lease_seconds
        if beat * 3 > lease:
            raise Misconfigured(
                f"worker.beat_seconds = {beat:g} is more than a third of worker.lease_seconds = {lease:g}", "lower the one or raise the other"
            )
    except ValidationError as error:
        raise Misconfigured(
            _explained(error, loaded), f"settings come from {loaded.path or 'the environment'}; `tailrace config` shows them all"
        ) from error
    return settings, loaded


def _explained(error: ValidationError, loaded: Loaded) -> str:
    lines = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"])
        origin = loaded.origin_of(where)
        lines.append(f"setting {where}: {problem['msg']}" + (f" (from {origin})" if origin else ""))
    return "; ".join(lines)


def utcnow() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
