"""Charts as inline SVG. Every text goes through `escaped`: outputs are what others wrote."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

from ops.compare.words import percent, visible

_LEFT, _WIDTH, _ROW, _RIGHT = 200, 420, 24, 90
_LONGEST = 28
COLOURS = {"same": "#8fa8bd", "changed": "#e0a33e", "only_a": "#c8553d", "only_b": "#3d8b6e", "a": "#5b7db1", "b": "#3d8b6e"}


@dataclass(frozen=True, slots=True)
class Bar:
    """A rate of 0 to 1 with its interval, under a name; None: not known."""

    name: str
    rate: float | None
    interval: Sequence[float] | None
    colour: str = COLOURS["a"]


def escaped(text: object) -> str:
    """For text and attributes of a page; characters that cannot be seen as their code."""
    return html.escape(visible(str(text)), quote=True)


def bars(found: Sequence[Bar]) -> str:
    """One line each: a bar from 0 to 1, and a whisker for the interval."""
    lines = [_bar(bar, 10 + i * _ROW) for i, bar in enumerate(found)]
    height = 20 + len(found) * _ROW
    grid = "".join(
        f'<line class="grid" x1="{_x(t / 4):.1f}" x2="{_x(t / 4):.1f}" y1="4" y2="{height - 8}"/>'
        f'<text class="tick" x="{_x(t / 4):.1f}" y="{height}" text-anchor="middle">{25 * t} %</text>'
        for t in range(5)
    )
    return _svg(grid + "".join(lines), height + 6)


def stack(parts: Sequence[tuple[str, int, str]]) -> str:
    """One bar of several parts (name, count, colour), as wide as they are many."""
    total = sum(count for _, count, _ in parts) or 1
    drawn, at = [], 0.0
    for i, (name, count, colour) in enumerate(parts):
        width = count / total * (_LEFT + _WIDTH)
        drawn.append(f'<rect x="{at:.1f}" y="4" width="{width:.1f}" height="22" fill="{colour}"><title>{escaped(name)}: {count:,}</title></rect>')
        drawn.append(f'<rect x="{i * 150}" y="36" width="10" height="10" fill="{colour}"/>')
        drawn.append(f'<text x="{i * 150 + 15}" y="45">{escaped(name)}: {count:,}</text>')
        at += width
    return _svg("".join(drawn), 52)


def _svg(inside: str, height: int) -> str:
    width = _LEFT + _WIDTH + _RIGHT
    return f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">{inside}</svg>'


def _bar(bar: Bar, y: int) -> str:
    name = bar.name if len(bar.name) <= _LONGEST else bar.name[: _LONGEST - 1] + "…"
    text = f'<text x="{_LEFT - 8}" y="{y + 12}" text-anchor="end">{escaped(name)}<title>{escaped(bar.name)}</title></text>'
    if bar.rate is None:
        return text + f'<text class="tick" x="{_LEFT + 4}" y="{y + 12}">nothing counted</text>'
    drawn = f'<rect x="{_LEFT}" y="{y + 2}" width="{bar.rate * _WIDTH:.1f}" height="13" fill="{bar.colour}"/>'
    if bar.interval is not None:
        low, high = (_x(end) for end in bar.interval)
        drawn += f'<path class="whisker" d="M{low:.1f} {y + 4}v9M{high:.1f} {y + 4}v9M{low:.1f} {y + 8.5}H{high:.1f}"/>'
    return text + drawn + f'<text x="{_LEFT + _WIDTH + 8}" y="{y + 12}">{percent(bar.rate)}</text>'


def _x(share: float) -> float:
    return _LEFT + share * _WIDTH
