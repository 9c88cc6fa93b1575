"""Reads and writes this repository's Markdown: headings, tables, fenced blocks, links."""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

from lib.http.reference import table

__all__ = ["Fence", "Markdown", "table"]

_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_TABLE = re.compile(r"(?:^\|.*\n)+", re.MULTILINE)
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s]+)\)")

Rows = list[list[str]]
"""The cells of a table, its heading first; the marks around a cell are gone."""


@dataclass(frozen=True)
class Fence:
    """A fenced block, without its indentation."""

    language: str
    text: str

    def commands(self) -> list[str]:
        """The lines of a shell block, continuation lines joined."""
        return self.text.replace("\\\n", " ").splitlines() if self.language == "sh" else []


@dataclass(frozen=True)
class Markdown:
    """One document, or a part of one."""

    text: str

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads a UTF-8 file.

        Raises:
            OSError: the file can't be read.
        """
        return cls(path.read_text(encoding="utf-8"))

    @cached_property
    def fences(self) -> list[Fence]:
        """The fenced blocks, in order."""
        return [
            Fence(language, re.sub(rf"^{indent}", "", text, flags=re.MULTILINE))
            for indent, language, text in _FENCE.findall(self.text)
        ]

    @cached_property
    def prose(self) -> str:
        """The text without its fenced blocks."""
        return _FENCE.sub("", self.text)

    @property
    def words(self) -> str:
        """The prose without line breaks, for looking up a phrase."""
        return " ".join(self.prose.split())

    @property
    def tables(self) -> list[Rows]:
        """The tables, in order."""
        return [
            [_cells(line) for number, line in enumerate(found.splitlines()) if number != 1]
            for found in _TABLE.findall(self.prose + "\n")
        ]

    @property
    def links(self) -> list[str]:
        """The targets of all links and images."""
        return _LINK.findall(self.prose)

    @property
    def anchors(self) -> set[str]:
        """The fragments that GitHub gives to the headings."""
        titles = _HEADING.findall(self.prose)
        return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}

    def section(self, title: str) -> "Markdown":
        """The text between a heading and the next one.

        Raises:
            LookupError: no heading has this title, or several do.
        """
        pattern = rf"^#+ {re.escape(title)}\n(.*?)(?=^#+ |\Z)"
        found = re.findall(pattern, self.text, re.MULTILINE | re.DOTALL)
        if len(found) != 1:
            raise LookupError(f"{len(found)} headings are called {title!r}")
        return Markdown(found[0])


def _cells(line: str) -> list[str]:
    return [cell.strip().strip("*`") for cell in line.strip().strip("|").split("|")]
