"""``python -m infra.docs.api``: writes ``API.md`` and ``STABILITY.md`` in ``infra/docs``.

Both are rendered from ``lib/http``, which the service serves as OpenAPI and as a page.
"""

import sys
from collections.abc import Mapping
from pathlib import Path

from infra.template import PROJECT_ROOT
from lib.http.guide import guide
from lib.http.openapi import openapi
from lib.http.reference import reference, section
from lib.http.stability import STABILITY

__all__ = ["documents", "main"]

SERVER = "https://api.example.com"
DOCUMENTS = PROJECT_ROOT / "infra" / "docs"
MADE_BY = "<!-- Made by `python -m infra.docs.api`; change lib/http instead. -->"


def documents() -> Mapping[Path, str]:
    """The text of each file."""
    stability = section(STABILITY).removeprefix("#")
    return {
        DOCUMENTS / "API.md": f"{MADE_BY}\n\n{reference(openapi(SERVER), guide())}",
        DOCUMENTS / "STABILITY.md": f"{MADE_BY}\n\n{stability}\n",
    }


def main() -> int:
    """Writes the files; the exit status."""
    for path, text in documents().items():
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(PROJECT_ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
