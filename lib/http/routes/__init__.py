"""The routes of the contract, by subject; ``lib.http.contract`` has the list."""
