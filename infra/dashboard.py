"""Puts ``infra/dashboard.json`` into ``template.yaml``, where CloudFormation wants it as text.

    python -m infra.dashboard

A dashboard as a file of its own is read, reviewed and pasted into the console as it is. A template
can take it from a file only by way of a bucket, which neither cfn-lint nor a test can follow.
"""

import json
import re
import textwrap
from pathlib import Path

from infra.template import TEMPLATE_PATH

__all__ = ["SOURCE", "embedded"]

SOURCE = Path(__file__).with_name("dashboard.json")
_PLACE = re.compile(r"(?<=      DashboardBody: !Sub \|\n)(?: {8}.*\n)+")


def embedded(template: str, dashboard: str) -> str:
    """The text of ``template`` with ``dashboard`` as the body of its dashboard.

    Raises:
        ValueError: the dashboard is not JSON, or the template has no single place for it.
    """
    json.loads(dashboard)
    found, times = _PLACE.subn(
        lambda _place: textwrap.indent(dashboard.rstrip("\n") + "\n", " " * 8), template
    )
    if times != 1:
        raise ValueError("the template has no `DashboardBody: !Sub |`, or several")
    return found


def main() -> None:
    """Rewrites the template."""
    template = TEMPLATE_PATH.read_text(encoding="utf-8")
    TEMPLATE_PATH.write_text(embedded(template, SOURCE.read_text(encoding="utf-8")), "utf-8")


if __name__ == "__main__":
    main()
