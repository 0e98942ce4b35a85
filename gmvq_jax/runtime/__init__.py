"""What programs need around the mathematics: files, devices, errors, progress.

Imports nothing else of the package.
"""
