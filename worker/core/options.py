"""Command lines: unknown words are refused with the nearest known one, and every program ends with a designed exit code."""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from worker.core.errors import Misconfigured, TailraceError, Unavailable, nearest
from worker.core.specs import listed
from worker.core.texts import storable

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

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse. A word that is no text (bytes that are not UTF-8) is refused: no name in the database has it."""
        for word in sys.argv[1:] if args is None else args:
            if not storable(word):
                self.error(f"this is no text: {word!r}")
        return super().parse_args(args, namespace)

    def _options_below(self) -> set[str]:
        found = set(self._option_string_actions)
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001  argparse has no public walk
                for parser in action.choices.values():
                    found |= parser._options_below()  # noqa: SLF001
        return found


def number(text: str) -> int:
    """A whole number that Postgres can hold."""
    if not re.fullmatch(r"-?[0-9]{1,19}", text) or not -(2**63) <= int(text) < 2**63:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number of at most 64 bits")
    return int(text)


def positive(text: str) -> int:
    """A whole number above zero."""
    if not re.fullmatch(r"[0-9]{1,19}", text) or not 1 <= int(text) < 2**63:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number above 0")
    return int(text)


def amount(text: str) -> float:
    """A number from zero on."""
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0 <= found < math.inf:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a number from 0 on")
    return found


def names(text: str) -> list[str]:
    """A comma list or a JSON array of names."""
    try:
        found = listed(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not all(isinstance(name, str) for name in found):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a list of names")
    return list(found)


def percent(text: str) -> int:
    """A whole number from 0 to 99: of all records, a version is promoted."""
    if not re.fullmatch(r"[0-9]{1,19}", text) or int(text) > 99:  # noqa: PLR2004  100 is a promotion
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number from 0 to 99; without --percent it speaks for all")
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
