"""Drivers of OpenAI clients, each of which runs in an environment of its own."""
