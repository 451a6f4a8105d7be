"""Every metric, named here and nowhere else. Counters follow the events; database gauges are read from views at each scrape."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Any

import asyncpg
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from worker.core import events
from worker.core.pace import Pace

_SECONDS = (0.001, 0.005, 0.02, 0.1, 0.5, 2, 10, 60, 300, 1800, 7200)
_WAIT = (0.002, 0.01, 0.05, 0.25, 1, 5, 30, 120, 600, 3600, 21600, 86400)

# name, help, labels, query (labels first, value last)
_GAUGES: tuple[tuple[str, str, tuple[str, ...], str], ...] = (
    ("tailrace_queue_lag_seconds", "Age of the oldest due record, by the database clock", ("pipeline", "version", "lane"),
     "select pipeline, version, lane::text, seconds from tailrace.queue_lag"),
    ("tailrace_queue_depth", "Records that wait or are in work", ("pipeline", "version", "lane", "state"),
     "select pipeline, version, lane::text, state, records::float8 from tailrace.queue_depth"),
    ("tailrace_source_lag_seconds", "Seconds since a source brought something or was seen to have no more", ("source",),
     "select source, seconds from tailrace.source_lag"),
    ("tailrace_stuck_claims", "Claims whose lease ran out more than 30 s ago: 0 while a watchdog lives", (),
     "select count(*)::float8 from tailrace.jobs where state = 'c' and lease_until < tailrace.clock() - interval '30 seconds'"),
    ("tailrace_unrunnable_records", "Open work that no running worker has registered", ("pipeline", "version"),
     "select pipeline, version, records::float8 from tailrace.unrunnable"),
    ("tailrace_oldest_xmin_seconds", "Age of the oldest snapshot that keeps dead rows alive", (),
     "select coalesce(max(seconds), 0)::float8 from tailrace.xmin_holders"),
    ("tailrace_deliveries", "Deliveries by state", ("kind", "state"), "select kind, state, deliveries::float8 from tailrace.delivery_depth"),
    ("tailrace_oldest_pending_delivery_seconds", "Age of the oldest delivery that waits", ("kind",),
     "select kind, oldest_seconds from tailrace.delivery_depth where state = 'pending'"),
    ("tailrace_breaker_open", "1 while a breaker keeps work back", ("name",),
     "select name, 1::float8 from tailrace.quotas where breaker = 'open' and (open_until > tailrace.clock()) is not false"),
    ("tailrace_quota_remaining", "What is left of a limit, as its service told", ("name",),
     "select name, remaining from tailrace.quotas where remaining is not null"),
    ("tailrace_coverage_gaps", "Holes in what a source was seen to cover", ("source",),
     "select source, gaps::float8 from tailrace.source_gaps"),
    ("tailrace_backfill_progress_ratio", "Share of a history that a backfill has gone through, where its size is known", ("source",),
     "select source, ratio from tailrace.backfill_progress where ratio is not null"),
    ("tailrace_backfill_chunk_records", "Size of the last chunk of a backfill", ("source",),
     "select source, chunk_size::float8 from tailrace.backfill_progress where chunk_size is not null"),
    ("tailrace_source_silence_exceeded", "1 where a source has been silent for longer than is expected of it", ("source",),
     "select source, exceeded::int::float8 from tailrace.source_silence"),
    ("tailrace_runs_remaining_records", "Raw ids that open runs have still to go through", ("run", "kind"),
     "select id::text, kind, (position_to - position)::float8 from tailrace.runs where kind <> 'backfill' and state in ('active', 'paused')"),
)  # fmt: skip

# The collector's role may read no results, deliveries or workers.
_COLLECTOR = frozenset({"tailrace_queue_lag_seconds", "tailrace_queue_depth", "tailrace_source_lag_seconds", "tailrace_oldest_xmin_seconds",
                        "tailrace_breaker_open", "tailrace_quota_remaining", "tailrace_backfill_progress_ratio",
                        "tailrace_backfill_chunk_records", "tailrace_source_silence_exceeded", "tailrace_coverage_gaps",
                        "tailrace_runs_remaining_records"})  # fmt: skip


class _Stored:
    """Hands the families of the last scrape to prometheus_client; a label that vanished vanishes here too."""

    families: dict[str, Metric]

    def __init__(self) -> None:
        self.families = {}

    def collect(self) -> Iterable[Metric]:
        return list(self.families.values())


class Metrics:
    """The metrics of one process."""

    def __init__(self, program: str) -> None:
        self.registry = CollectorRegistry()
        self._gauges = [g for g in _GAUGES if program != "collector" or g[0] in _COLLECTOR]
        self._stored = _Stored()
        self._pace = Pace()
        self._read_at = 0.0  # when the database last answered
        self.registry.register(self._stored)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=self.registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(name, text, labels, buckets=buckets, registry=self.registry)

        self.up = Gauge("tailrace_database_up", "1 when the last scrape reached the database", registry=self.registry)
        self.raw = counter("tailrace_raw_records_total", "Revisions stored", "source")
        self.defects = counter("tailrace_raw_defects_total", "Records stored with a defect", "source")
        self.source_failures = counter("tailrace_source_failures_total", "Failed reads of a source", "source")
        self.claims = counter("tailrace_claims_total", "Claims", "pipeline", "version", "lane")
        self.settled = counter("tailrace_settled_records_total", "Records settled", "pipeline", "version", "outcome")
        self.process = histogram(
            "tailrace_process_seconds", "Processing time of a record (slices: mean of the slice)", _SECONDS, "pipeline", "version"
        )
        self.wait = histogram("tailrace_wait_seconds", "From due to claimed", _WAIT, "pipeline", "version", "lane")
        self.rescues = counter("tailrace_rescues_total", "Claims taken back after their lease")
        self.dead = counter("tailrace_dead_records_total", "Records buried by the watchdog")
        self.lost = counter("tailrace_claims_lost_total", "Settles refused by the fence", "pipeline")
        self.effects = counter("tailrace_effects_total", "Effects by verdict", "pipeline", "verdict")
        self.deliveries = counter("tailrace_delivery_attempts_total", "Delivery attempts by outcome", "kind", "outcome")
        self.failures = counter("tailrace_step_failures_total", "Rounds of a loop that failed", "step")
        self.refused = counter("tailrace_webhook_refused_total", "Webhook calls refused", "source", "reason")
        events.subscribe(self._on_event)

    def _on_event(self, name: str, f: dict[str, Any]) -> None:
        handler = getattr(self, "_" + name.replace(".", "_"), None)
        if handler:
            handler(f)

    def _step_failed(self, f: dict[str, Any]) -> None:
        self.failures.labels(f["step"]).inc()

    def _raw_appended(self, f: dict[str, Any]) -> None:
        self.raw.labels(f["source"]).inc(f["appended"])

    def _raw_defective(self, f: dict[str, Any]) -> None:
        self.defects.labels(f["source"]).inc(f.get("count", 1))

    def _source_failed(self, f: dict[str, Any]) -> None:
        self.source_failures.labels(f["source"]).inc()

    def _webhook_refused(self, f: dict[str, Any]) -> None:
        self.refused.labels(f["source"], f["reason"]).inc()

    def _job_claimed(self, f: dict[str, Any]) -> None:
        self.claims.labels(f["pipeline"], f["version"], str(f["lane"])).inc()
        self.wait.labels(f["pipeline"], f["version"], str(f["lane"])).observe(max(0.0, f["wait"]))

    def _job_settled(self, f: dict[str, Any]) -> None:
        for outcome in ("ok", "skipped", "failed", "retried"):
            if f[outcome]:
                self.settled.labels(f["pipeline"], f["version"], outcome).inc(f[outcome])
        self.process.labels(f["pipeline"], f["version"]).observe(f["seconds"])
        for verdict in ("released", "suppressed"):
            if f[verdict]:
                self.effects.labels(f["pipeline"], verdict).inc(f[verdict])

    def _claim_lost(self, f: dict[str, Any]) -> None:
        self.lost.labels(f["pipeline"]).inc(f.get("slices", 1))

    def _lease_rescued(self, f: dict[str, Any]) -> None:
        self.rescues.inc(f["rescued"])
        self.dead.inc(f["buried"])

    def _delivery_sent(self, f: dict[str, Any]) -> None:
        self.deliveries.labels(f["kind"], "sent").inc()

    def _delivery_failed(self, f: dict[str, Any]) -> None:
        self.deliveries.labels(f["kind"], "failed").inc()

    def _delivery_retried(self, f: dict[str, Any]) -> None:
        self.deliveries.labels(f["kind"], "retry").inc()

    def _delivery_uncertain(self, f: dict[str, Any]) -> None:
        self.deliveries.labels(f["kind"], "uncertain").inc()

    async def scrape(self, pool: asyncpg.Pool | None, seconds: float = 5.0) -> bytes:
        """The text for Prometheus. Without a database the process' own metrics are still there."""
        begun, reached = time.time(), False
        try:
            if pool is not None:
                await asyncio.wait_for(self._read(pool), seconds)
                reached = True
        except TimeoutError:  # slow is not away: what was not read yet comes first the next time
            reached = self._read_at >= begun
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
            self._pace = Pace()
        self.up.set(reached)
        if not reached:
            self._stored.families.clear()
        return generate_latest(self.registry)

    async def _read(self, pool: asyncpg.Pool) -> None:
        """Each gauge that is due: one whose view is slow to read is read less often, and keeps its values until then."""
        families = self._stored.families
        async with pool.acquire() as connection:
            for name, text, labels, query in sorted(self._gauges, key=lambda g: self._pace.due(g[0])):
                if not self._pace.ready(name):
                    continue
                family = GaugeMetricFamily(name, text, labels=labels)
                with self._pace.timed(name):
                    for row in await connection.fetch(query):
                        family.add_metric([str(v) for v in row[:-1]], row[-1])
                families[name], self._read_at = family, time.time()
        families["time"] = GaugeMetricFamily("tailrace_scrape_time_seconds", "Unix time of this reading", value=time.time())
