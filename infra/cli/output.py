"""The output of a command: tables and sentences for people, one JSON document for scripts.

Results go to standard output, everything else to standard error, first of all the target's name:
questions repeat it, and documents have it as ``target``. A terminal gets bold headings and a
progress indicator, a file or a pipe plain text.
"""

import csv
import json
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from infra.cli.errors import CommandFailed

__all__ = ["Column", "Output", "Row", "escaped", "timestamp"]

ROWS_AT_ONCE = 200
# Wide enough that a file or a pipe gets each row on one line.
UNLIMITED_COLUMNS = 10_000
Row = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: its title, and the field that it shows or a function of the row."""

    title: str
    cell: str | Callable[[Row], str]
    right: bool = False
    min_width: int = 0

    def text(self, row: Row) -> str:
        """The cell of ``row``; None is shown as nothing."""
        value = self.cell(row) if callable(self.cell) else row[self.cell]
        return "" if value is None else escaped(str(value))


def timestamp(epoch_s: float | None) -> str | None:
    """Epoch seconds as ISO 8601 in UTC, to the second."""
    if epoch_s is None:
        return None
    return f"{datetime.fromtimestamp(epoch_s, UTC):%Y-%m-%dT%H:%M:%SZ}"


def escaped(text: str) -> str:
    """``text`` with its unprintable characters and its combining marks escaped.

    A customer's prompt must not control the operator's terminal, and marks by the hundred would
    cover the lines around them.
    """
    return "".join(each if _is_harmless(each) else ascii(each)[1:-1] for each in text)


def _is_harmless(character: str) -> bool:
    return character.isprintable() and not unicodedata.category(character).startswith("M")


class Output:
    """Standard output and standard error of one command, which acts on ``target``, if any."""

    def __init__(self, target: str | None, *, as_json: bool) -> None:
        self.as_json = as_json
        self._target = target
        self._is_terminal = sys.stdout.isatty()
        self._console = Console(width=None if self._is_terminal else UNLIMITED_COLUMNS)
        if target is not None and not as_json:
            self.note(f"Target: {target}")

    def result(self, document: Row, *lines: str) -> None:
        """One object: ``document`` for scripts, ``lines`` for people."""
        named = document if self._target is None else {"target": self._target, **document}
        for line in [json.dumps(named, indent=2)] if self.as_json else map(escaped, lines):
            self._line(line)

    def details(self, document: Row, facts: Mapping[str, str]) -> None:
        """One object, for people with one fact a line."""
        width = max(map(len, facts)) + 2
        self.result(document, *(f"{name:{width}}{value}".rstrip() for name, value in facts.items()))

    def listing(
        self, name: str, rows: Iterable[Row], columns: list[Column], more: Callable[[], Row]
    ) -> int:
        """Any number of rows, written as they come: memory does not grow with them.

        For scripts they are the list ``name`` of an object that ends with the fields of ``more``.
        Returns their number.
        """
        if self.as_json:
            return self._json_listing(name, rows, more)
        shown, remaining = 0, iter(rows)
        while batch := list(islice(remaining, ROWS_AT_ONCE)):
            self._table(batch, columns, show_header=shown == 0)
            shown += len(batch)
        return shown

    def csv(self, rows: Iterable[Row], fields: list[str]) -> None:
        """Any number of rows as CSV (RFC 4180, with line feeds), after a line of ``fields``."""
        writer = csv.DictWriter(sys.stdout, fields, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        sys.stdout.flush()

    def report(
        self,
        name: str,
        rows: Iterable[Row],
        lines: Callable[[Row], Iterable[str]],
        more: Callable[[], Row],
    ) -> None:
        """Like ``listing``, but each row is shown as lines of text."""
        if self.as_json:
            self._json_listing(name, rows, more)
            return
        for row in rows:
            for line in lines(row):
                self._line(escaped(line))

    def note(self, sentence: str) -> None:
        """A remark to the operator that is not part of the result."""
        sys.stdout.flush()
        print(escaped(sentence) + ".", file=sys.stderr, flush=True)

    def confirm(self, action: str, *, yes: bool) -> None:
        """Asks before an action that cannot be undone.

        Raises:
            CommandFailed: the operator declines, or there is no terminal to ask on.
        """
        if yes:
            return
        question = f"{action} ({self._target})?"
        if not sys.stdin.isatty():
            raise CommandFailed(
                f'nothing was done, because there is no terminal to confirm "{question}"; '
                "pass --yes to confirm"
            )
        print(f"{escaped(question)} [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline(100).strip().lower() not in {"y", "yes"}:
            raise CommandFailed("nothing was done; repeat the command and answer y to confirm")

    @contextmanager
    def progress(self, activity: str) -> Iterator[Callable[[str], None]]:
        """Shows that a long ``activity`` is going on; the function yielded says how far it is.

        It is drawn below the result if a terminal shows that, otherwise on standard error.
        """
        console = self._console if self._is_terminal else Console(stderr=True)
        if not console.is_terminal or (self._is_terminal and self.as_json):
            yield lambda _state: None
            return
        spinner = Spinner("dots", Text(activity))
        with Live(
            spinner, console=console, transient=True, redirect_stdout=False, redirect_stderr=False
        ):
            yield lambda state: spinner.update(text=Text(f"{activity}: {state}"))

    def _json_listing(self, name: str, rows: Iterable[Row], more: Callable[[], Row]) -> int:
        shown = 0
        self._line(f'{{"{name}": [')
        for row in rows:
            sys.stdout.write((",\n" if shown else "") + "  " + json.dumps(row))
            shown += 1
        fields = "".join(
            f', "{field}": {json.dumps(value)}'
            for field, value in {**more(), "target": self._target}.items()
        )
        self._line(("\n" if shown else "") + f"]{fields}}}")
        return shown

    def _table(self, rows: list[Row], columns: list[Column], *, show_header: bool) -> None:
        table = Table(show_header=show_header, box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for column in columns:
            table.add_column(
                Text(column.title, "bold"),
                justify="right" if column.right else "left",
                min_width=max(column.min_width, len(column.title)),
                overflow="fold",
            )
        for row in rows:
            table.add_row(*(Text(column.text(row)) for column in columns))
        if self._is_terminal:
            self._console.print(table)
            return
        with self._console.capture() as captured:
            self._console.print(table)
        for line in captured.get().splitlines():
            self._line(line.rstrip())

    def _line(self, text: str) -> None:
        if self._is_terminal and not self.as_json:
            # The console keeps the progress indicator below the line.
            self._console.print(Text(text), soft_wrap=True)
            return
        # The console would turn a closed pipe into SystemExit; a key must then be revoked.
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
