"""Pages, charts and pictures of results, and the figures that the paper prints.

Takes arrays and numbers; knows nothing of training.
"""
