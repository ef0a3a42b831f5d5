"""Finished runs to a table: the best learning rate of each cell, then every run measured."""

from collections.abc import Sequence

import numpy as np

from .cells import Context, Measured, Run, Table, Values


def measure_table(table: Table, runs: Sequence[Run], context: Context) -> Measured:
    """Measure the runs of a table.

    A cell with runs of several learning rates counts with the one of the highest mean AP on the evaluation split, the
    smaller one of equals.

    Args:
        table: what to measure.
        runs: finished ones; those of other tables' cells are passed over.
        context: evaluation split and scale.
    """
    order = {cell.name: (index, cell) for index, cell in enumerate(table.cells(context.scale))}
    own = [run for run in runs if run.cell.name in order]
    # another table may have the same runs under another label
    own = [Run(order[run.cell.name][1], run.seed, run.learning_rate, run.folder, run.preset) for run in own]
    own.sort(key=lambda run: (order[run.cell.name][0], run.learning_rate, run.seed))
    rates: dict[str, dict[float, dict[int, float]]] = {}
    for run in own:
        rates.setdefault(run.cell.name, {}).setdefault(run.learning_rate, {})[run.seed] = run.metric("AP")
    best = {name: best_learning_rate(scores) for name, scores in rates.items()}
    chosen = tuple(run for run in own if run.learning_rate == best[run.cell.name])
    values: Values = {}
    for run in chosen:
        for row, columns in table.measure(run, context).items():
            for column, value in columns.items():
                values.setdefault(row, {}).setdefault(column, {})
                if np.isfinite(value):
                    values[row][column][run.seed] = value
    return Measured(values, chosen, {name: scores for name, scores in rates.items() if len(scores) > 1})


def best_learning_rate(scores: dict[float, dict[int, float]]) -> float:
    """The learning rate of the highest mean AP over its seeds; the smaller one of equals."""
    return max(sorted(scores), key=lambda rate: float(np.mean(list(scores[rate].values()))))
