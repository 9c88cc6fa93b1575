"""The whole service on one machine, with no cloud account."""
