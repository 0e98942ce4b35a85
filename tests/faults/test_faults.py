"""The list of deliberate faults; `run.py` injects them."""

import faults
import pytest
import run


def test_there_are_enough_faults_with_names_of_their_own():
  assert len(faults.FAULTS) >= 50
  assert len({fault.name for fault in faults.FAULTS}) == len(faults.FAULTS)


@pytest.mark.parametrize('fault', faults.FAULTS, ids=lambda fault: fault.name)
def test_a_fault_can_be_injected(fault):
  """Its text stands in the package once, and its tests are there."""
  source = (run.ROOT / run.locate(fault)).read_text()
  edited = source.replace(fault.find, fault.put)
  compile(edited, fault.name, 'exec')
  assert edited != source
  assert fault.tests and all(map(run.locate_test, fault.tests))
