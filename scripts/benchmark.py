"""Speed and memory beside transformers' detectors: python scripts/benchmark.py SUITE... --output DIR (see --help)"""

from drmm_hf.benchmark.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
