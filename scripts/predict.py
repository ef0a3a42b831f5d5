"""Detect objects in image files, draw them and write them down: see --help."""

from drmm_hf.evaluation.predict_cli import main

if __name__ == "__main__":
    raise SystemExit(main())
