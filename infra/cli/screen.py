"""What the operator sees: tables and sentences for people, one JSON document for scripts.

What was asked for goes to standard output, all else to standard error. On a terminal there are
colours, lines around tables and a sign of life; in a file or a pipe there is plain text.
"""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import TypeVar

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from infra.cli.faults import NotDoneError

__all__ = ["Column", "Row", "Screen", "moment", "visible"]

ROWS_AT_ONCE = 200
Row = Mapping[str, object]
R = TypeVar("R", bound=Row)


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: its title, and what a row shows in it."""

    title: str
    cell: Callable[[Row], str]
    right: bool = False
    least: int = 0

    @classmethod
    def of(cls, title: str, field: str, *, right: bool = False, least: int = 0) -> "Column":
        """The column of one field; what is not there is empty."""

        def cell(row: Row) -> str:
            value = row[field]
            return "" if value is None else visible(str(value))

        return cls(title, cell, right, least)


def moment(epoch_s: float | None) -> str | None:
    """Epoch seconds as ISO 8601 in UTC, to the second."""
    if epoch_s is None:
        return None
    return f"{datetime.fromtimestamp(epoch_s, UTC):%Y-%m-%dT%H:%M:%SZ}"


def visible(text: str) -> str:
    """``text`` with all that a terminal would obey, or not show, written out.

    Prompts are customers' words: they must not move the cursor of an operator's terminal.
    """
    return "".join(
        character if character.isprintable() else ascii(character)[1:-1] for character in text
    )


class Screen:
    """Standard output and standard error of one command."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.is_terminal = sys.stdout.isatty()
        self._console = Console()
        self._is_drawing = False

    def show(self, document: Row, *lines: str) -> None:
        """One thing: ``document`` for scripts, ``lines`` for people."""
        if self.as_json:
            self._line(json.dumps(document, indent=2))
            return
        for line in lines:
            self._line(line)

    def details(self, document: Row, facts: Mapping[str, str]) -> None:
        """One thing with many facts, each on a line of its own."""
        width = max(map(len, facts)) + 2
        self.show(document, *(f"{name:{width}}{value}".rstrip() for name, value in facts.items()))

    def listing(
        self,
        name: str,
        rows: Iterable[Row],
        columns: Iterable[Column],
        more: Callable[[], Row] = dict,
    ) -> int:
        """Many things, written as they come: any number of them takes the same memory.

        For scripts it is the list ``name`` of an object, which ends with the fields of ``more``.

        Returns:
            How many there were.
        """
        if self.as_json:
            return self._json_listing(name, rows, more)
        shown, remaining, shape = 0, iter(rows), list(columns)
        while batch := list(islice(remaining, ROWS_AT_ONCE)):
            self._table(batch, shape, headed=shown == 0)
            shown += len(batch)
        return shown

    def report(
        self,
        name: str,
        rows: Iterable[R],
        lines: Callable[[R], Iterable[str]],
        more: Callable[[], Row],
    ) -> None:
        """Many things, each on some lines of its own; in JSON as ``listing`` has it."""
        if self.as_json:
            self._json_listing(name, rows, more)
            return
        for row in rows:
            for line in lines(row):
                self._line(line)

    def tell(self, sentence: str) -> None:
        """Something about what is done, which is no part of the answer."""
        sys.stdout.flush()
        print(sentence + ".", file=sys.stderr, flush=True)

    def confirm(self, what: str, *, yes: bool) -> None:
        """Passes when the operator wants ``what``, which can't be taken back.

        Raises:
            NotDoneError: the operator does not, or nobody can be asked.
        """
        if yes:
            return
        if not sys.stdin.isatty():
            raise NotDoneError(
                f'nothing was done, as there is no terminal to ask on: "{what}?"; repeat it with '
                "--yes if you want that"
            )
        print(f"{what}? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline(100).strip().lower() not in {"y", "yes"}:
            raise NotDoneError("nothing was done; repeat it and answer y if you want it")

    @contextmanager
    def working(self, what: str) -> Iterator[Callable[[str], None]]:
        """A sign of life on a terminal while something takes long; called, it says how far it is.

        It is drawn on the terminal that shows the answer, so that it stays below the lines of it,
        or on that of standard error while the answer goes elsewhere.
        """
        console = self._console if self.is_terminal else Console(stderr=True)
        if not console.is_terminal or (self.is_terminal and self.as_json):
            yield lambda _how_far: None
            return
        spinner = Spinner("dots", Text(what))
        self._is_drawing = self.is_terminal
        try:
            with Live(
                spinner,
                console=console,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            ):
                yield lambda how_far: spinner.update(text=Text(f"{what}: {how_far}"))
        finally:
            self._is_drawing = False

    def _json_listing(self, name: str, rows: Iterable[Row], more: Callable[[], Row]) -> int:
        shown = 0
        self._line(f'{{"{name}": [')
        for row in rows:
            sys.stdout.write((",\n" if shown else "") + "  " + json.dumps(row))
            shown += 1
        fields = "".join(f', "{field}": {json.dumps(value)}' for field, value in more().items())
        self._line(("\n" if shown else "") + f"]{fields}}}")
        return shown

    def _table(self, rows: list[Row], columns: list[Column], *, headed: bool) -> None:
        cells = [[column.cell(row) for column in columns] for row in rows]
        if self.is_terminal:
            table = Table(show_header=headed, box=None, pad_edge=False, padding=(0, 2, 0, 0))
            for column in columns:
                table.add_column(
                    Text(column.title, "bold"),
                    justify="right" if column.right else "left",
                    min_width=column.least,
                    overflow="fold",
                )
            for line in cells:
                table.add_row(*map(Text, line))
            self._console.print(table)
            return
        titles = [[column.title for column in columns]] if headed else []
        widths = [
            max(column.least, len(column.title), *(len(line[at]) for line in cells))
            for at, column in enumerate(columns)
        ]
        for line in [*titles, *cells]:
            padded = [
                text.rjust(width) if column.right else text.ljust(width)
                for text, width, column in zip(line, widths, columns, strict=True)
            ]
            self._line("  ".join(padded).rstrip())

    def _line(self, text: str) -> None:
        if self._is_drawing:
            self._console.print(Text(text), soft_wrap=True)
            return
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
