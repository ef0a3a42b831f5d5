"""`drmm cards`: writes the card of a trained model."""

import argparse

from ..hub import write_checkpoint_card
from ..hub.card import APACHE


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Write the model card (README.md) of the trained model in a folder.")
    parser.add_argument("folder", help="checkpoint, or the output folder of a training")
    parser.add_argument("--analysis", help="analysis.json of `drmm analyze`, for calibration and thresholds")
    parser.add_argument("--data-name", help="what the data set is called (default: the name of its folder)")
    parser.add_argument("--repo-id", help="where it will be published, user/name")
    parser.add_argument("--license", default=APACHE, help=f"of the weights, as the Hub names it (default: {APACHE})")
    parser.add_argument("--overwrite", action="store_true", help="replace a card that is there")
    return parser


def run(arguments: argparse.Namespace) -> None:
    options = {name: getattr(arguments, name) for name in ("analysis", "data_name", "repo_id", "overwrite")}
    print(write_checkpoint_card(arguments.folder, license_id=arguments.license, **options))
