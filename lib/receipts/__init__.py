"""Receipts: what a generation cost, signed so that a customer can check it without this service."""
