"""The mathematics: pure functions of arrays, without Flax and without files.

The paper's equations (`posterior`, `albo`, `mixture`, `bounds`) and the kernels
that compute them in little memory. Imports nothing else of the package.
"""
