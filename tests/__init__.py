"""The tests. They run in an environment of their own, whatever the shell's leads to.

This comes before any import: moto and boto3 read such variables when they are imported.
"""

import os

_SERVICES = ("AWS_", "GEMINI_", "GOOGLE_", "LOG_LEVEL", "MOTO_", "POWERTOOLS_")
_TERMINAL = ("CLICOLOR", "COLUMNS", "FORCE_COLOR", "LINES", "NO_COLOR", "TTY_")

for _name in [each for each in os.environ if each.startswith(_SERVICES + _TERMINAL)]:
    del os.environ[_name]
# What installs packages may need a proxy; no server of a test is behind one.
for _name in ("NO_PROXY", "no_proxy"):
    os.environ[_name] = ",".join(filter(None, [os.environ.get(_name), "127.0.0.1", "localhost"]))
