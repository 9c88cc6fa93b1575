"""HTTP: request parsing, response bodies, the contract, its OpenAPI document and docs page."""
