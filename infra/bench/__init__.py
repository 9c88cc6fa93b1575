"""Measurements, each a command that prints a table and fails if a target is missed."""
