"""`tailrace effects list | explain | release | cancel | resolve`."""

from __future__ import annotations

import getpass
from typing import Any

from ops.db import Connection, connected, one, rows
from ops.table import as_json, show
from worker.core.errors import Misconfigured, TailraceError, nearest
from worker.core.settings import Settings

_LIST = """select e.id, p.name as pipeline, e.raw_id, e.kind, e.target, e.verdict, e.reason, d.state as delivery, e.key, e.body, e.created_at
from tailrace.effects e join tailrace.versions v on v.id = e.version_id join tailrace.pipelines p on p.id = v.pipeline_id
left join tailrace.deliveries d on d.key = e.key
where (%(kind)s::text is null or e.kind = %(kind)s) and (%(verdict)s::text is null or e.verdict = %(verdict)s)
  and (%(reason)s::text is null or e.reason = %(reason)s) and (%(state)s::text is null or d.state = %(state)s)
order by e.id desc limit %(limit)s"""


def _actor() -> str:
    return f"operator {getpass.getuser()}"


def listing(settings: Settings, given: Any) -> int:
    with connected(settings) as connection:
        if given.kind and given.kind not in settings.effects:
            known = {*settings.effects, *(r["kind"] for r in rows(connection, "select distinct kind from tailrace.effects"))}
            if given.kind not in known:
                raise Misconfigured(f"there is no effect kind {given.kind!r}", nearest(given.kind, known))
        found = rows(connection, _LIST, {n: getattr(given, n) for n in ("kind", "verdict", "reason", "state", "limit")})
    as_json(found) if given.json else show(found, ("id", "kind", "target", "verdict", "reason", "delivery", "key", "body"), indent="")
    return 0


def _by(connection: Connection, what: str) -> list[dict[str, Any]]:
    query = "select e.*, v.name as version from tailrace.effects e join tailrace.versions v on v.id = e.version_id where "
    if what.isdigit() and (found := rows(connection, query + "e.id = %s", [int(what)])):
        return rows(connection, query + "e.key = %s order by e.id", [found[0]["key"]])
    found = rows(connection, query + "e.key = %s order by e.id", [what])
    if not found:
        raise TailraceError(f"there is no effect with id or key {what!r}", "`tailrace effects list` shows both")
    return found


def explain(settings: Settings, what: str, *, json: bool) -> int:
    """Everything about one key: who wanted it, what the gate said, what the world got."""
    with connected(settings) as connection:
        effects = _by(connection, what)
        key = effects[0]["key"]
        delivery = one(connection, "select * from tailrace.deliveries where key = %s", [key])
        ledger = rows(
            connection, "select at, event, attempt, actor, remote_id, detail from tailrace.delivery_attempts where key = %s order by id", [key]
        )
    for effect in effects:
        effect["body_hash"] = effect["body_hash"].hex()
    if json:
        as_json({"key": key, "effects": effects, "delivery": delivery or None, "ledger": ledger})
        return 0
    print(f"key {key}\n\nwanted by")
    show(effects, ("id", "version", "raw_id", "rerun", "kind", "target", "verdict", "reason", "body", "created_at"))
    print("\ndelivery")
    show([delivery] if delivery else [], ("state", "policy", "attempts", "remote_id", "next_at", "error", "updated_at"))
    print("\nledger")
    show(ledger)
    return 0


def release(settings: Settings, numbers: list[int], *, json: bool, dry_run: bool) -> int:
    """Only while the gate of the kind is open here: a person releases, the gate still decides."""
    from worker.sinks import policy_of  # noqa: PLC0415  other commands need no sink

    done = []
    with connected(settings) as connection:
        for number in numbers:
            effect = one(connection, "select kind, key from tailrace.effects where id = %s", [number])
            if not effect:
                raise TailraceError(f"there is no effect {number}", "`tailrace effects list` shows the ids")
            spec = settings.open_gates.get(effect["kind"])
            if spec is None:
                raise TailraceError(f"the gate of {effect['kind']!r} is closed", f"open it first: TAILRACE_EFFECTS__{effect['kind'].upper()}=1")
            if not dry_run:
                one(connection, "select tailrace.release_effect(%s, %s, %s)", [number, policy_of(effect["kind"], spec), _actor()])
            done.append({"effect": number, "key": effect["key"], "released": not dry_run})
    if json:
        as_json(done)
    for row in [] if json else done:
        print(
            f"effect {row['effect']} ({row['key']}): "
            + ("would be released (dry run)" if dry_run else "released; a worker with this gate open sends it")
        )
    return 0


def change(settings: Settings, key: str, state: str, remote: str | None, *, json: bool, dry_run: bool) -> int:
    """Cancel and resolve: what a person knows about a delivery."""
    with connected(settings) as connection:
        found = one(connection, "select state from tailrace.deliveries where key = %s", [key])
        if not found:
            raise TailraceError(f"there is no delivery with key {key!r}", "`tailrace effects list --state uncertain` shows keys")
        if dry_run:
            changed = True
        elif state == "cancelled":
            changed = one(connection, "select tailrace.cancel_delivery(%s, %s) as done", [key, _actor()])["done"]
        else:
            changed = one(connection, "select tailrace.resolve_delivery(%s, %s, %s, %s) as done", [key, state, remote, _actor()])["done"]
    facts = {"key": key, "was": found["state"], "now": state if changed else found["state"], "changed": changed and not dry_run}
    if json:
        as_json(facts)
    elif changed:
        print(f"{key}: {found['state']} -> {state}" + (" (dry run)" if dry_run else ""))
    else:
        print(f"{key} is {found['state']}: too late for that")
    return 0 if changed else 1
