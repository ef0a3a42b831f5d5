"""Train or fine-tune a detector: `python scripts/train.py --data FOLDER --train-images 30000` or `accelerate launch ...`."""

from drmm_hf.training.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
