"""What can go wrong in a build."""

__all__ = ["BuildError"]


class BuildError(Exception):
    """Nothing that could be deployed was made; the sentence says why, and what to do."""
