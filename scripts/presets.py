"""List the presets with their parameters and multiply-adds: python scripts/presets.py [NAME ...]"""

from drmm_hf.evaluation.presets_cli import main

if __name__ == "__main__":
    raise SystemExit(main())
