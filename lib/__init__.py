"""The service: what happens to a paid request, one room per idea."""
