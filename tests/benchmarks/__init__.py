"""What the instrumentation costs, measured beside its peers: `python -m tests.benchmarks --help`."""
