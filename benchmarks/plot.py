"""Groups of bars, as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

COLOURS = ("#4477aa", "#66ccee", "#228833", "#ccbb44", "#ee6677")
"""Paul Tol's "bright" scheme, which the colour-blind can tell apart."""
TALLEST = 4
BAR, GAP, HEIGHT, LEFT, TOP, BOTTOM = 16, 24, 260, 48, 48, 64


def bars(groups: Sequence[tuple[str, dict[str, float]]], what: str) -> str:
    """A bar for each (group, kind), with a line at 1. What is too tall is cut, and its figure stands above it."""
    kinds = list(dict.fromkeys(kind for _, figures in groups for kind in figures))
    top = min(TALLEST, max(2, ceil(max(figure for _, figures in groups for figure in figures.values()))))
    scale = HEIGHT / top
    parts, x, y = [], float(LEFT + GAP), 0.0
    for name, figures in groups:
        start = x
        for kind, figure in figures.items():
            height = min(figure, top) * scale
            if figure > top:
                parts.append(f'<text x="{x:.0f}" y="{TOP - 2}" font-size="9">{figure:.0f}</text>')
            parts.append(
                f'<rect x="{x:.0f}" y="{TOP + HEIGHT - height:.1f}" width="{BAR - 2}" height="{height:.1f}"'
                f' fill="{COLOURS[kinds.index(kind)]}"><title>{name}, {kind}: {figure:.2f}</title></rect>'
            )
            x += BAR
        middle = (start + x) / 2
        y = TOP + HEIGHT + 16
        turned = f'text-anchor="end" transform="rotate(-20 {middle:.0f} {y})"'
        parts.append(f'<text x="{middle:.0f}" y="{y}" {turned}>{name}</text>')
        x += GAP
    for n in range(top + 1):
        y = TOP + HEIGHT - n * scale
        line = "#000" if n == 1 else "#ccc"
        parts.insert(0, f'<line x1="{LEFT}" x2="{x:.0f}" y1="{y:.1f}" y2="{y:.1f}" stroke="{line}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{n}</text>')
    for n, kind in enumerate(kinds):
        parts.append(f'<rect x="{LEFT + n * 110}" y="8" width="12" height="12" fill="{COLOURS[n]}"/>')
        parts.append(f'<text x="{LEFT + 18 + n * 110}" y="18">{kind}</text>')
    parts.append(f'<text x="{LEFT}" y="{TOP - 14}">{what}</text>')
    width, height = x + GAP, TOP + HEIGHT + BOTTOM
    inside = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height}" font-family="sans-serif"'
        f' font-size="12">\n<rect width="100%" height="100%" fill="#fff"/>\n{inside}\n</svg>\n'
    )
