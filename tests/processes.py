"""One of several processes of runs, for `runtime/test_distributed.py`.

`python tests/processes.py WORKDIR --config...` trains in WORKDIR/whole by the
command line, is given a mistake, is stopped in WORKDIR/stopped, and loses the
second process in WORKDIR/killed. One start for all of them: it takes seconds.
"""

import os
import signal
import sys
import time

from absl import flags as absl_flags
import jax

from gmvq_jax import main as main_lib
from gmvq_jax.runtime import errors
from gmvq_jax.training import command_line
from gmvq_jax.training import experiment
from gmvq_jax.training import trainer

FLAGS = absl_flags.FLAGS


def call(*arguments):
  """Runs the command line in this process, if it ends well."""
  print(f'--- {arguments[0]}', flush=True)
  sys.argv = ['gmvq', *arguments]
  for name in [name for name in FLAGS if name.startswith('config.')]:
    delattr(FLAGS, name)  # Defined again.
  try:
    command_line.run(main_lib.main)
  except SystemExit as end:
    assert not end.code, end.code


def send_signal(number, step):
  """Has the second process send itself a signal before a step.

  Then both are slow, so that they agree to stop before the run ends.
  """
  make = experiment.Experiment.make_train_step

  def make_and_signal(self):
    of_experiment = make(self)

    def train_step(state, images):
      now = int(state.step)
      if now == step and jax.process_index() == 1:
        os.kill(os.getpid(), number)
      if now >= step:
        time.sleep(1)
      return of_experiment(state, images)

    return train_step

  experiment.Experiment.make_train_step = make_and_signal
  return lambda: setattr(experiment.Experiment, 'make_train_step', make)


def main(workdir, *flags):
  """Does all of it."""
  call(f'--workdir={workdir}/whole', '--distributed', *flags)
  config = FLAGS.config.copy_and_resolve_references()
  config.batch_size = 3
  try:
    trainer.run(config, f'{workdir}/mistake')
  except errors.UserError as error:
    print(f'mistake: {error}', flush=True)
  restore = send_signal(signal.SIGTERM, 1)
  call(f'--workdir={workdir}/stopped', '--nodistributed', *flags)
  restore()
  send_signal(signal.SIGKILL, 0)
  call(f'--workdir={workdir}/killed', '--nodistributed', *flags)


if __name__ == '__main__':
  main(*sys.argv[1:])
