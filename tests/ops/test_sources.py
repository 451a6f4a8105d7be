"""`tailrace sources`: the lanes of a source have breakers of their own, its line shows the worse one."""

from __future__ import annotations

import json

from ops.sources import sources
from worker.core.settings import Settings


async def test_what_holds_the_catch_up_is_shown_and_ended_with_the_source(pool, db_url, capsys):
    settings = Settings(database_url=db_url)
    await pool.execute("select tailrace.register_sources('{telegram:offers}', array['{}'::jsonb])")

    def shown():
        sources(settings, "list", None, json=True, dry_run=False)
        (row,) = json.loads(capsys.readouterr().out)
        return row["breaker"], row["reason"]

    await pool.execute("select tailrace.call_failed('source:telegram:offers', 'once', 5)")
    assert shown() == ("closed", "once")
    await pool.execute("select tailrace.hold_calls('{source:telegram:offers catch-up}', 60, 'FLOOD_WAIT_60')")
    assert shown() == ("open", "FLOOD_WAIT_60")
    await pool.execute("select tailrace.hold_calls('{source:telegram:offers}', null, 'SESSION_REVOKED')")
    assert shown() == ("open", "SESSION_REVOKED"), "it waits for a person"
    sources(settings, "retry", "telegram:offers", json=False, dry_run=False)
    assert "is called again now" in capsys.readouterr().out
    assert shown() == ("closed", None)
