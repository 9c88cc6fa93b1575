"""Lambda entry points: an event in, a response out, nothing else."""
