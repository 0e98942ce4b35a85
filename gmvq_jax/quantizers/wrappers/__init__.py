"""Wrappers: each takes a quantizer and returns one that does more.

They see the codebook through `read` and `write` alone, as the wrappers inside
leave it: `with_replacement(with_l2_normalization(vqvae(...)))` replaces
codewords that are searched on the sphere.
"""
