"""``python -m infra.cli``: the same as ``gemini-generate``."""

import sys

from infra.cli import main

sys.exit(main())
