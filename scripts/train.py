"""Train or fine-tune a detector, alone or under `accelerate launch`: see --help."""

from drmm_hf.training.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
