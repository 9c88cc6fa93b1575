"""What runs for a while, and always ends: used as ``with``, it stops when the block does."""

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self

__all__ = ["Runs", "Stops"]


class Stops(ABC):
    """It is stopped at the end of the block."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @abstractmethod
    def stop(self) -> None:
        """Ends it, and all that it started."""


class Runs(Stops):
    """It is started at the beginning of the block, too."""

    def __enter__(self) -> Self:
        self.start()
        return self

    @abstractmethod
    def start(self) -> None:
        """Begins."""
