"""The HTTP contract: requests, responses, OpenAPI and the docs page."""
