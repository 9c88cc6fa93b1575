"""The parts of a text about the API, for the docs page and for Markdown alike."""

from dataclasses import dataclass

__all__ = ["Block", "Bullets", "Code", "Section", "Table"]


@dataclass(frozen=True, slots=True)
class Bullets:
    """A list."""

    items: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """A table; the first cell of a row is its heading."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Code:
    """A block of code; ``language`` is that of a Markdown fence."""

    language: str
    text: str


Block = str | Bullets | Table | Code
"""A paragraph is a plain string. Strings hold inline code in backticks, and no other markup."""


@dataclass(frozen=True, slots=True)
class Section:
    """A heading with its blocks; ``anchor`` is its fragment on the docs page."""

    anchor: str
    title: str
    blocks: tuple[Block, ...]
