"""Side-by-side measurements against peers; run them with `python -m benchmarks`."""
