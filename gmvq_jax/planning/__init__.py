"""Compiling the programs of a configuration for devices that are not here."""
