"""Publish a checkpoint on the Hugging Face Hub: see --help."""

from drmm_hf.hub.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
