"""`scripts/cards.py`: writes the cards of the presets anew, or the card of a trained model."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..evaluation.reliability import save_reliability_diagram
from ..files import write_json
from ..hub.card import checkpoint_analysis, checkpoint_card, checkpoint_folder, preset_card
from ..hub.card_facts import condense_analysis, reliability
from ..hub.card_preset import CARDS, measured_data, read_card_data
from ..hub.card_text import APACHE, DIAGRAM
from ..hub.plan import CARD


def write_preset_cards(root: str | Path, output: str | Path) -> list[Path]:
    """Write the card, and its diagram, of every `model_cards/data/NAME.yaml` of a repository.

    It goes to `model_cards/NAME/README.md`, or into the folder of the checkpoint that the data names.

    Args:
        root: of the repository.
        output: the same, or another folder to write them to.

    Raises:
        FileNotFoundError, ValueError: the data of a card is missing or wrong.
    """
    sources = sorted((Path(root) / CARDS / "data").glob("*.yaml"))
    if not sources:
        raise FileNotFoundError(f"{Path(root) / CARDS / 'data'}: no data of cards; run this in the repository")
    written = []
    for source in sources:
        data = read_card_data(source)
        folder = Path(output) / data.card_folder
        card = preset_card(source, root)
        measured = measured_data(data, Path(root))
        if measured is not None and measured.split in measured.facts:
            _diagram(folder, data.name, measured.facts[measured.split])
        folder.mkdir(parents=True, exist_ok=True)
        card.save(folder / CARD)
        written.append(folder / CARD)
    return written


def write_checkpoint_card(
    folder: str | Path,
    *,
    analysis: str | Path | None = None,
    data_name: str | None = None,
    repo_id: str | None = None,
    license_id: str = APACHE,
    overwrite: bool = False,
) -> Path:
    """Write README.md, and images/reliability.png if there is an analysis, into the folder of a checkpoint.

    Args:
        folder, analysis, data_name, repo_id, license_id: see `checkpoint_card`.
        overwrite: replace a README.md that is there.

    Raises:
        FileExistsError: there is one.
        FileNotFoundError, ValueError: see `checkpoint_card`.
    """
    checkpoint = checkpoint_folder(folder)
    path = checkpoint / CARD
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} is there already; --overwrite replaces it")
    card = checkpoint_card(folder, analysis=analysis, data_name=data_name, repo_id=repo_id, license_id=license_id)
    facts = checkpoint_analysis(checkpoint, analysis)
    if facts is not None:
        _diagram(checkpoint, repo_id or Path(folder).resolve().name, facts)
    card.save(path)
    return path


def _diagram(folder: Path, name: str, facts: Mapping[str, Any]) -> None:
    path = folder / DIAGRAM
    path.parent.mkdir(parents=True, exist_ok=True)
    save_reliability_diagram(path, {name: reliability(facts)})


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Without arguments: write all cards in model_cards/ and checkpoints/ anew from model_cards/data/. "
        "With a folder: write the model card (README.md) of the trained model in it.",
    )
    parser.add_argument("folder", nargs="?", help="checkpoint, or the output folder of a training")
    parser.add_argument("--analysis", help="analysis.json of scripts/analyze.py, for calibration and thresholds")
    parser.add_argument("--data-name", help="what the data set is called (default: the name of its folder)")
    parser.add_argument("--repo-id", help="where it will be published, user/name")
    parser.add_argument("--license", default=APACHE, help=f"of the weights, as the Hub names it (default: {APACHE})")
    parser.add_argument("--overwrite", action="store_true", help="replace a card that is there")
    parser.add_argument("--extract", metavar="FILE", help="write what a card shows of --analysis to FILE, and no card")
    parser.add_argument("--root", default=".", help="of the repository, for the cards of the presets (default: .)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def run(arguments: argparse.Namespace) -> int:
    if arguments.extract:
        if not arguments.analysis:
            raise ValueError("--extract needs --analysis")
        write_json(Path(arguments.extract), condense_analysis(arguments.analysis, arguments.folder))
        print(arguments.extract)
    elif arguments.folder:
        print(
            write_checkpoint_card(
                arguments.folder,
                analysis=arguments.analysis,
                data_name=arguments.data_name,
                repo_id=arguments.repo_id,
                license_id=arguments.license,
                overwrite=arguments.overwrite,
            )
        )
    else:
        for path in write_preset_cards(arguments.root, arguments.root):
            print(path)
    return 0
