"""The parts of `scripts/reproduce.py`: the tables as data, their runs, what is measured, and how it is written."""
