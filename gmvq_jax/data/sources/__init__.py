"""Data sources: one file for each kind of place that images come from.

`data.load` chooses among them by name.
"""
