"""COCO AP and calibration of a trained detector: see --help."""

from drmm_hf.evaluation.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
