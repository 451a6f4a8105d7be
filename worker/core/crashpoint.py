"""Named points at which a process can be ended at once, as by kill -9 or a power cut, so that a test sees what recovery makes of it.

`CRASHPOINT=name` ends the process when it comes to that point, `CRASHPOINT=name:3` when it comes there for the third time. Without the
variable a point compares two strings. One stands at most once a page, claim, settle or delivery, never at a record.
"""

from __future__ import annotations

import os
import signal

VARIABLE = "CRASHPOINT"
# name -> what is owed by the next start, and by the processes that go on
POINTS: dict[str, str] = {
    # collector
    "after-lease-before-read": "The lease of a process that is gone holds nobody up: on the same machine it is taken at once, elsewhere it ends.",
    "after-fetch-before-append": "The position has not moved, so the page is read again. A caller of a webhook got no answer and sends it again.",
    "after-append-before-commit": "Postgres takes the page back as a whole: no record, job, cursor or coverage of it stays.",
    "after-append-before-next": "Records, jobs and position are there together; nothing rang, and workers find the jobs all the same.",
    "after-commit-before-answer": "The caller of the webhook saw no 202 and sends it again; its key is known, so nothing is stored twice.",
    "after-heal-before-next": "The catch-up goes on from its own position; the tail does not notice.",
    "after-limit-before-wait": "The source is not called before the time that it named, whichever process would call it.",
    "after-open-before-advance": "The run is open, and the watchdog of any worker steps it to its end.",
    # worker
    "after-register-before-claim": "The version is there with its cover run, once; the next start goes on with it.",
    "after-advance-before-next": "The step's jobs and the run's position are there together; another process goes on from there.",
    "after-claim-before-process": "The lease ends, and the records come back alone; each is processed.",
    "after-outage-before-retry": "The version rests until the end of its pause, resumes alone, and no attempt is used up.",
    "after-process-before-settle": "What was computed is lost and is computed again; of results, effects and removal of the job nothing was there.",
    "after-settle-before-next": "Results, effects and removal of the job are there together; the records are not processed again.",
    "after-prefix-before-rest": "The settled part of the slice stays done; only the rest comes back.",
    "after-rescue-before-claim": "What was rescued is ready for whoever looks next: a crash during recovery costs nothing more.",
    "after-stop-before-give-back": "What should have been given back comes back when its lease ends.",
    "after-give-back-before-exit": "What was given back is ready at once, without an attempt or a crash.",
    # dispatcher
    "after-claim-before-send": "Nothing left, but nobody can know: sent again with its key, or uncertain under never_twice.",
    "after-send-before-mark": "It left, and nobody wrote it down: sent again with its key, or uncertain and never sent again under never_twice.",
    "after-mark-before-next": "What is marked is done with; the other deliveries in flight come back as their policy says.",
    "after-stop-before-unclaim": "What was claimed ahead and not sent comes back when its lease ends.",
}


def parse(text: str) -> tuple[str, int]:
    """The name of a point and which time it counts, from 1. Raises ValueError for a count that is none."""
    name, _, count = text.partition(":")
    if count and not (count.isdigit() and int(count)):
        raise ValueError(f"{count!r} is no count from 1 on")
    return name, int(count or 1)


def _armed() -> tuple[str, int]:
    """What the environment asks for. What is wrong with it is said by config.py, which every program reads."""
    try:
        return parse(os.environ.get(VARIABLE, ""))
    except ValueError:
        return "", 1


_name, _left = _armed()


def crashpoint(name: str) -> None:
    """Ends this process where CRASHPOINT names this point."""
    if name == _name:
        _pass()


def _pass() -> None:
    global _left  # noqa: PLW0603  the count belongs to the process
    _left -= 1
    if _left == 0:
        os.write(2, f"{VARIABLE}: this process ends {_name}\n".encode())
        os.kill(os.getpid(), signal.SIGKILL)
