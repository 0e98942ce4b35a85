"""Names of devices that are not here."""

import pytest

from gmvq_jax.planning import topologies
from gmvq_jax.runtime import errors


@pytest.mark.parametrize(
    ('name', 'said'),
    [
        ('v9:2x2', "'v9' is unknown; there are v4, v5e, .*, such as v5e:4x4"),
        ('v5e', 'chips along each side, such as v5e:4x4'),
        ('v5e:4x4x4', 'chips along each side, such as v5e:4x4'),
        ('v4:4x4', 'chips along each side, such as v4:4x4x4'),
        ('v5e:0x4', 'chips along each side'),
        ('v5e:4xfour', 'chips along each side'),
        ('v5e:-4x4', 'chips along each side'),
        ('h100:8', 'nodes and cards of each, such as h100:1x8'),
        ('h100:1x9', '9 cards in a node: must be at most 8'),
    ],
)
def test_names_that_are_none(name, said):
  with pytest.raises(errors.UserError, match=f'^--topology={name}: .*{said}'):
    topologies.find(name)


@pytest.mark.parametrize('name', ['v5e:2x2', 'h100:1x1'])
def test_a_missing_compiler_says_what_to_install(name, monkeypatch):
  monkeypatch.setattr(topologies, '_installed', lambda package: False)
  with pytest.raises(errors.UserError, match=r"pip install 'gmvq_jax\[plan\]'"):
    topologies.find(name)
