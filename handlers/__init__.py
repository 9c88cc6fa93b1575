"""Lambda entry points: an event in, a response out, nothing else."""

import gc

from lib.settings import initialization_type

# This runs before any other import of a function. All that a function imports stays, and collecting
# garbage meanwhile would take a tenth of a cold start; ``initialize`` switches it on again.
if initialization_type() is not None:
    gc.disable()
