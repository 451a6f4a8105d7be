"""Command lines: unknown words are refused with the nearest known one, and every program ends with a designed exit code."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from worker.core.errors import Misconfigured, TailraceError, Unavailable, nearest

OK, CHECK_FAILED, USAGE, PARTLY, WORK_LEFT, INTERRUPTED = 0, 1, 2, 3, 4, 130


class Parser(argparse.ArgumentParser):
    """argparse, which says what was probably meant."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str) -> NoReturn:
        hint = ""
        if found := re.search(r"unrecognized arguments: (\S+)", message):
            hint = nearest(found[1].partition("=")[0], self._options_below())
        elif found := re.search(r"invalid choice: '([^']*)'", message):
            hint = nearest(found[1], re.findall(r"'?([\w-]+)'?(?:, |\))", message.partition("choose from")[2] + ")"))
        self.exit(USAGE, f"{self.prog}: {message}\n" + (f"  {hint}\n" if hint else "") + f"  `{self.prog} --help` lists what there is\n")

    def _options_below(self) -> set[str]:
        found = set(self._option_string_actions)
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001  argparse has no public walk
                for parser in action.choices.values():
                    found |= parser._options_below()  # noqa: SLF001
        return found


def positive(text: str) -> int:
    """A whole number above zero."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def percent(text: str) -> int:
    """A whole number from 0 to 99: of all records, a version is promoted."""
    if not text.isdigit() or int(text) > 99:  # noqa: PLR2004  100 is a promotion
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 99; without --percent it speaks for all")
    return int(text)


def guarded(main: Callable[[], int]) -> int:
    """Runs a program; our own errors become one message and an exit code, an interrupt 130."""
    try:
        return main()
    except (Misconfigured, Unavailable) as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE
    except TailraceError as error:
        print(f"error: {error}", file=sys.stderr)
        return CHECK_FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return OK
