"""The parts of `bench/compare.py`: problems, confirmation, peers, tables."""
