"""Detections of a checkpoint in the browser: see --help."""

from drmm_hf.demo import main

if __name__ == "__main__":
    raise SystemExit(main())
