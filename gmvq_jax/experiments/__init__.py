"""The experiments of the paper: sweeps, comparisons, bounds and samples.

Each has a command of its own; none is imported by the rest of the package.
"""
