"""The suites of `scripts/benchmark.py`, one function each: settings in, tables and figures out."""
