"""Measuring the tables of the paper, cell by cell: what `soae reproduce` does."""
