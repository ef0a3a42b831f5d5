"""Train a small detector and look at it: see --help."""

from drmm_hf.training.quickstart import main

if __name__ == "__main__":
    raise SystemExit(main())
