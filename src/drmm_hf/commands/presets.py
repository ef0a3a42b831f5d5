"""`drmm presets`: the named configurations with their size and arithmetic."""

import argparse

from transformers.utils import logging

from ..cli import positive_int
from ..configuration_drmm import DrmmConfig
from ..evaluation.complexity import count_complexity
from ..presets import PRESETS, preset_fields


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="The presets with parameters and multiply-adds.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="presets to list (default: all)")
    parser.add_argument("--height", type=positive_int, default=800, help="network input, pixels (default: 800)")
    parser.add_argument("--width", type=positive_int, default=1280, help="network input, pixels (default: 1280)")
    return parser


def run(arguments: argparse.Namespace) -> int:
    if arguments.height % 32 or arguments.width % 32:
        raise ValueError(f"--height {arguments.height} --width {arguments.width}: must be multiples of 32")
    names = arguments.names or list(PRESETS)
    for name in names:
        preset_fields(name)  # refuse a wrong name before the first line
    logging.set_verbosity_error()  # timm backbones ignore the attention implementation, and say so each time
    print(f"{'preset':<28}{'K':>6}{'stages':>8}{'params/M':>10}{'trained/M':>11}{'GMACs':>9}")
    for name in names:
        config = DrmmConfig.from_preset(name)
        counts = count_complexity(config, arguments.height, arguments.width)
        print(
            f"{name:<28}{config.num_proposals:>6}{config.num_stages:>8}{counts.parameters / 1e6:>10.2f}"
            f"{counts.trainable / 1e6:>11.2f}{counts.multiply_adds / 1e9:>9.1f}"
        )
    print(
        f"GMACs: 10^9 multiply-adds of one {arguments.height}x{arguments.width} image; the paper, as mmdet, calls them "
        "FLOPs and leaves out the batched products of the dynamic convolution and the adaptive mixing"
    )
    return 0
