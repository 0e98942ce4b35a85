"""Training: from a configuration to a checkpoint and a report.

`trainer.run` is the whole of it; `loop` holds the steps, `build` the programs.
"""
