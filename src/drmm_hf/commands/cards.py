"""`drmm cards`: writes the cards of the presets anew, or the card of a trained model."""

import argparse
from pathlib import Path

from ..files import write_json
from ..hub import write_checkpoint_card, write_preset_cards
from ..hub.card import APACHE, condense_analysis


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Without arguments: write all cards in model_cards/ and checkpoints/ anew from model_cards/data/. "
        "With a folder: write the model card (README.md) of the trained model in it.",
    )
    parser.add_argument("folder", nargs="?", help="checkpoint, or the output folder of a training")
    parser.add_argument("--analysis", help="analysis.json of `drmm analyze`, for calibration and thresholds")
    parser.add_argument("--data-name", help="what the data set is called (default: the name of its folder)")
    parser.add_argument("--repo-id", help="where it will be published, user/name")
    parser.add_argument("--license", default=APACHE, help=f"of the weights, as the Hub names it (default: {APACHE})")
    parser.add_argument("--overwrite", action="store_true", help="replace a card that is there")
    parser.add_argument("--extract", metavar="FILE", help="write what a card shows of --analysis to FILE, and no card")
    parser.add_argument("--root", default=".", help="of the repository, for the cards of the presets (default: .)")
    return parser


def run(arguments: argparse.Namespace) -> None:
    if arguments.extract:
        if not arguments.analysis:
            raise ValueError("--extract needs --analysis")
        write_json(Path(arguments.extract), condense_analysis(arguments.analysis, arguments.folder))
        print(arguments.extract)
    elif arguments.folder:
        path = write_checkpoint_card(
            arguments.folder,
            analysis=arguments.analysis,
            data_name=arguments.data_name,
            repo_id=arguments.repo_id,
            license_id=arguments.license,
            overwrite=arguments.overwrite,
        )
        print(path)
    else:
        for path in write_preset_cards(arguments.root, arguments.root):
            print(path)
