"""API keys: their format, their stored hashes, verification, and the operator's key ring."""
