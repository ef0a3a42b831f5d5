"""Make tables and figures of the paper: see --help."""

from drmm_hf.reproduction.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
