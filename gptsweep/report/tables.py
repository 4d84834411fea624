"""Tables that fit the terminal: columns are left out, split into several tables, or become lines; numbers are never cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

GAP = 2
FEWEST = 2
"""With fewer metrics than this beside the settings, a block of lines per row is more readable than a table."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of formatted cells. Text (``wraps``) may take several lines; a number never wraps."""

    heading: str
    cells: Sequence[Text]
    wraps: bool = False
    justify: Literal["left", "right"] = "right"
    style: str = ""

    def width(self, available: int) -> int:
        """The width in characters, given the width available to the table."""
        cells = max((line.cell_len for cell in self.cells for line in cell.split("\n")), default=0)
        if self.wraps:
            cells = min(cells, max(14, available // 4))
        words = max(len(word) for line in self.heading.split("\n") for word in line.split(" "))
        return min(available, max(cells, words if not self.wraps else min(words, max(cells, 14))))


def fitting(lead: Sequence[Column], others: Sequence[Column], width: int) -> int:
    """How many of ``others`` fit beside ``lead`` into ``width`` characters."""
    left = width - sum(column.width(width) + GAP for column in lead)
    for count, column in enumerate(others):
        left -= column.width(width) + (GAP if count else 0)
        if left < 0:
            return count
    return len(others)


def print_table(console: Console, columns: Sequence[Column], sections: Sequence[int] = ()) -> None:
    """Print a table with a line above each row whose number is in ``sections``."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0), header_style="")
    for column in columns:
        heading = Text(column.heading)
        width = column.width(console.width)
        table.add_column(heading, justify=column.justify, style=column.style, overflow="fold", width=width)
    for number, row in enumerate(zip(*(column.cells for column in columns), strict=True)):
        if number in sections:
            table.add_section()
        table.add_row(*row)
    console.print(table)
    console.print()


def print_in_parts(console: Console, lead: Column, others: Sequence[Column]) -> None:
    """Print one or more tables, each with ``lead`` and as many of ``others`` as fit, at least one."""
    while others:
        count = max(1, fitting([lead], others, console.width))
        print_table(console, [lead, *others[:count]])
        others = others[count:]


def print_blocks(console: Console, titles: Sequence[Text], columns: Sequence[Column]) -> None:
    """Print each row as its title and a line for each column."""
    headings = [column.heading.replace("\n", " ") for column in columns]
    longest = max(map(len, headings))
    for title, row in zip(titles, zip(*(column.cells for column in columns), strict=True), strict=True):
        console.print(title, overflow="fold")
        for heading, cell in zip(headings, row, strict=True):
            console.print(Text.assemble("  ", heading.ljust(longest), "  ", cell), overflow="fold")
        console.print()
