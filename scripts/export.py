"""Export a checkpoint: python scripts/export.py CHECKPOINT OUT --format onnx|torch_export (see --help)."""

from drmm_hf.export.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
