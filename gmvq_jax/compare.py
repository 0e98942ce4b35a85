"""Many methods by one protocol: the table that ranks them at equal bits.

    python -m gmvq_jax.compare --config=configs/table1_cifar10.py \\
        --workdir=runs/table1 [--methods=gmvq,vqvae] [--seeds=0,1]

See `experiments.comparison`.
"""

from gmvq_jax.experiments.comparison import compare
from gmvq_jax.experiments.comparison import run_comparison

__all__ = ['compare']

if __name__ == '__main__':
  run_comparison()
