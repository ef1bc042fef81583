"""The parts of bench/performance.py."""
