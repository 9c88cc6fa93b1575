"""The commands of the guides, and the operator's terminal at which they are run."""

import io
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass

from infra.docs.markdown import Markdown

__all__ = ["Agreeing", "ShellCommand", "shell_commands"]


class Agreeing(io.StringIO):
    """A terminal at which the operator answers yes."""

    def isatty(self) -> bool:
        return True


@dataclass(frozen=True)
class ShellCommand:
    """The words of a command as the shell passes them, ``$(...)`` and variables unexpanded."""

    words: list[str]

    @property
    def options(self) -> dict[str, str]:
        """Each option with the word after it, or with nothing if it has none."""
        following = [*self.words[1:], "--"]
        return {
            word: "" if after.startswith("--") else after
            for word, after in zip(self.words, following, strict=True)
            if word.startswith("--")
        }


def shell_commands(documents: Iterable[Markdown]) -> list[ShellCommand]:
    """Every command of the documents' shell blocks, those inside ``$(...)`` too."""
    fences = [fence for document in documents for fence in document.fences]
    lines = [line.strip() for fence in fences for line in fence.commands()]
    inner = [each for line in lines for each in re.findall(r"\$\(([^()]*)\)", line)]
    outer = [line for line in lines if line and line != "}" and not line.endswith("() {")]
    return [ShellCommand(shlex.split(line)) for line in [*outer, *inner]]
