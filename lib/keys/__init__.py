"""API keys: format, stored records, verification of a request, and the operator's key ring."""
