"""The methods: one file each, with a factory that returns a `Quantizer`.

To add one, see CONTRIBUTING.md.
"""
