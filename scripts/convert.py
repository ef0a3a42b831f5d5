"""Convert a released checkpoint: python scripts/convert.py SRC OUT --preset NAME (see --help)."""

from drmm_hf.conversion.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
