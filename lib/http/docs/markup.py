"""HTML of texts, tables and code blocks."""

import html
import re
from collections.abc import Iterable, Sequence

from lib.http.text import Block, Bullets, Code, Section, Table

__all__ = ["code", "panel", "prose", "row", "section", "table", "topic"]

_LONGEST_WHOLE = 36
_ADDRESS = re.compile(r"((?:https://|mailto:)[^\s<`]+[^\s<`.,:;])")


def code(text: object) -> str:
    """``text``, escaped, as inline code, which breaks only if it is too long for a phone."""
    return _inline(html.escape(str(text)))


def prose(text: str) -> str:
    """``text``, escaped, with backticks rendered as inline code and addresses as links."""
    parts = re.split(r"`([^`]+)`", html.escape(text))
    return "".join(
        _inline(part) if number % 2 else _ADDRESS.sub(r'<a href="\1">\1</a>', part)
        for number, part in enumerate(parts)
    )


def row(*cells: str) -> str:
    """A table row of HTML cells, headed by the first."""
    first, *others = cells
    return f'<tr><th scope="row">{first}</th>{"".join(f"<td>{each}</td>" for each in others)}</tr>'


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of texts; a narrow screen shows each row as a block."""
    heading = "".join(f'<th scope="col">{prose(column)}</th>' for column in columns)
    body = "".join(row(*map(prose, cells)) for cells in rows)
    return f'<table class="blocks"><thead><tr>{heading}</tr></thead><tbody>{body}</tbody></table>'


def panel(title: str, text: str) -> str:
    """A titled block of code, which the page's script gives a button to copy it."""
    return (
        f'<div class="panel"><div class="head"><h4>{html.escape(title)}</h4></div>'
        f'<pre tabindex="0"><code>{html.escape(text)}</code></pre></div>'
    )


def topic(anchor: str, title: str, body: str) -> str:
    """A part of the page that can be folded; the heading stays."""
    return (
        f'<details class="topic" id="{anchor}" open><summary><h3>{html.escape(title)}</h3>'
        f"</summary>{body}</details>"
    )


def section(each: Section) -> str:
    """A section of the guide."""
    return topic(each.anchor, each.title, "".join(map(_block, each.blocks)))


def _inline(escaped: str) -> str:
    is_long = len(html.unescape(escaped)) > _LONGEST_WHOLE
    attribute = ' class="long"' if is_long else ""
    return f"<code{attribute}>{escaped}</code>"


def _block(block: Block) -> str:
    match block:
        case Bullets(items):
            return f"<ul>{''.join(f'<li>{prose(item)}</li>' for item in items)}</ul>"
        case Table(columns, rows):
            return table(columns, rows)
        case Code(language, text):
            return panel({"sh": "Shell", "http": "Response"}.get(language, language), text)
        case text:
            return f"<p>{prose(text)}</p>"
