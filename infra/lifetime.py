"""Base classes for what is started and stopped: used with ``with``, it stops with the block."""

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self

__all__ = ["Runs", "Stops"]


class Stops(ABC):
    """Stops at the end of the block."""

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
        """Stops it and everything that it started."""


class Runs(Stops):
    """Starts at the beginning of the block too."""

    def __enter__(self) -> Self:
        self.start()
        return self

    @abstractmethod
    def start(self) -> None:
        """Starts it."""
