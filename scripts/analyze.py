"""One HTML report on one or several checkpoints: see --help."""

from drmm_hf.evaluation.analyze_cli import main

if __name__ == "__main__":
    raise SystemExit(main())
