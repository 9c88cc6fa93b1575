"""What surrounds the service: build, local stack, operator tools, benchmarks."""
