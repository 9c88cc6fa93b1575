"""``python -m infra.build --architecture arm64 --into DIRECTORY``.

Needs Python 3.11 or newer and, the first time, a network. A Python 3.13, if there is one, adds the
bytecode; ``PYTHON313=`` names it.
"""

import argparse
import sys
from pathlib import Path

from infra.build import python313
from infra.build.faults import BuildError
from infra.build.reuse import build_once
from infra.build.sizes import report
from infra.build.wheels import PLATFORMS

_ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    """Builds; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m infra.build", description=__doc__)
    parser.add_argument("--architecture", choices=sorted(PLATFORMS), default="arm64")
    parser.add_argument("--into", type=Path, required=True, help="a directory, new or empty")
    wanted = parser.parse_args()
    try:
        remarks = build_once(_ROOT, wanted.architecture, wanted.into, python313.find())
    except BuildError as fault:
        print(f"The artifact can't be built: {fault}", file=sys.stderr)
        return 1
    print(f"{wanted.into}: {wanted.architecture}, {report(wanted.into)}")
    for remark in remarks:
        print(remark)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
