"""Write the model cards, or the card of a trained model: see --help."""

from drmm_hf.hub.card_cli import main

if __name__ == "__main__":
    raise SystemExit(main())
