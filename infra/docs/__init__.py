"""The guides, and the commands that make or check them."""
