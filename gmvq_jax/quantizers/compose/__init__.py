"""Compositions: several quantizers in series, side by side or projected.

Their codes have axes of their own; see `Quantizer.code_shape`.
"""
