"""What is measured, beside what is promised."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Row:
    """A figure in `unit`. `bar`: what is promised: at most so much or, with `at_least`, at least."""

    what: str
    figure: float
    unit: str
    bar: float | None = None
    at_least: bool = False

    @property
    def missed(self) -> bool:
        if self.bar is None:
            return False
        return self.figure < self.bar if self.at_least else self.figure > self.bar

    def shown(self) -> tuple[str, str, str, str]:
        digits = {"x": 3, "%": 3, "µs": 1, "s": 2}.get(self.unit, 0)
        bar = "" if self.bar is None else f"{'≥' if self.at_least else '≤'} {self.bar:g}"
        return self.what, f"{self.figure:,.{digits}f} {self.unit:<2}", bar, "MISSED" if self.missed else ""


def show(title: str, groups: Iterable[tuple[str, list[Row]]]) -> None:
    table = Table(title=title)
    for heading in ("", "measured", "promised", ""):
        table.add_column(heading, justify="left" if not heading else "right", no_wrap=True)
    for heading, rows in groups:
        table.add_section()
        table.add_row(f"[bold]{heading}[/bold]")
        for row in rows:
            table.add_row(*row.shown())
    Console(width=120).print(table)
