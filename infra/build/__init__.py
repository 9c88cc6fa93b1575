"""Makes the directory that is deployed: one artifact, the same for every function."""
