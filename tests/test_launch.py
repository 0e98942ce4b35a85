"""The launchers: what they would run, and what shellcheck has to say.

Where Slurm, a TPU or a cluster is needed, small scripts under its names act it.
"""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import time

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[1]
LOCAL = 'launch/local.sh'
SLURM = 'launch/slurm.sbatch'
TPU = 'launch/tpu_pod.sh'
MATRIX = 'launch/matrix.sh'
ONE = 'python -m gmvq_jax.main'
CPU = 'env JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES='
WORKER = 'bash gmvq_jax/launch/tpu_pod.sh on-worker'
THE_TPU = ('--name=n', '--zone=z')

# A program that trains until it is told to save.
TRAINS = """#!/usr/bin/env bash
trap 'echo saved >> "$CALLS"; exit 0' TERM
echo $$ > "$READY"
while true; do sleep 0.05; done
"""


def outside(**environment):
  """The environment, without what a cluster or a user may have put there."""
  names = r'SLURM_|TPU_|JAX_|VIRTUAL_ENV'
  own = {k: v for k, v in os.environ.items() if not re.match(names, k)}
  return own | {k: str(v) for k, v in environment.items()}


def run(*command, cwd=ROOT, **environment):
  return subprocess.run(
      list(map(str, command)),
      cwd=cwd,
      env=outside(**environment),
      capture_output=True,
      text=True,
      timeout=60,
  )


def wait_until(condition):
  for _ in range(1200):
    if condition():
      return
    time.sleep(0.05)
  raise AssertionError('waited in vain')


class Stage:
  """A directory with programs that act others, and what was asked of them."""

  def __init__(self, path):
    self.path = path
    self.workdir = path / 'runs' / 'run'
    self.workdir.mkdir(parents=True)
    self.environment = {
        'CALLS': path / 'calls',
        'READY': path / 'ready',
        'WORKDIR': self.workdir,
        'PATH': f'{path / "bin"}:{os.environ["PATH"]}',
    }
    (path / 'calls').touch()

  def act(self, name, text):
    program = self.path / 'bin' / name
    program.parent.mkdir(exist_ok=True)
    program.write_text(text.replace('\nLOG', f'\necho "{name} $*" >> "$CALLS"'))
    program.chmod(0o755)

  @property
  def calls(self):
    return (self.path / 'calls').read_text().splitlines()

  def complete(self):
    (self.workdir / 'summary.json').write_text('{}')

  def start(self, *command, **environment):
    """Starts a command, and returns it and the program that trains."""
    process = subprocess.Popen(
        list(map(str, command)),
        cwd=ROOT,
        env=outside(**self.environment, **environment),
    )
    return process, self.training()

  def training(self):
    """The process that trains, once it does."""
    ready = self.path / 'ready'
    wait_until(lambda: ready.exists() and ready.read_text().strip())
    return int(ready.read_text())


@pytest.fixture
def stage(tmp_path):
  return Stage(tmp_path)


@pytest.mark.parametrize('arguments, expected', [
    ([], [f'env {ONE} --config=configs/quickstart.py'
          ' --workdir=runs/quickstart']),
    (['--config=a b', '--workdir=c'], [f'env {ONE} --config=a b --workdir=c']),
    (['--devices=4', '--workdir=c'], [f'{CPU}4 {ONE} --workdir=c']),
    (['--processes=2', '--devices=3', '--workdir=c'], [
        f'{CPU}3 JAX_COORDINATOR_ADDRESS=localhost:1234 JAX_NUM_PROCESSES=2'
        f' JAX_PROCESS_ID={index} {ONE} --distributed --workdir=c'
        for index in (0, 1)
    ]),
])  # fmt: skip
def test_a_dry_run_prints_what_would_be_run(arguments, expected):
  result = run(LOCAL, '--dry-run', *arguments, PORT='1234')
  assert result.returncode == 0, result.stderr
  assert result.stdout.splitlines() == expected


SETUP = [
    'mkdir -p build',
    'git archive --format=tar.gz --output=build/gmvq_jax.tar.gz HEAD',
    'gcloud compute tpus tpu-vm scp build/gmvq_jax.tar.gz n:gmvq_jax.tar.gz'
    ' --worker=all --zone=z',
    "gcloud compute tpus tpu-vm ssh n --worker=all '--command=mkdir -p gmvq_jax"
    f' && tar -xzf gmvq_jax.tar.gz -C gmvq_jax && {WORKER} install\' --zone=z',
]
RUN = [
    f"gcloud compute tpus tpu-vm ssh n --worker=all '--command={WORKER} start"
    " --config=a\\ b --workdir=/nfs/c' --zone=z",
]
STATE = [
    "gcloud compute tpus tpu-vm describe n '--format=value(state)' --zone=z"
]


@pytest.mark.parametrize('arguments, expected', [
    (['setup'], SETUP),
    (['run', '--config=a b', '--workdir=/nfs/c'], RUN),
    (['restart', '--config=a b', '--workdir=/nfs/c'], STATE + SETUP + RUN),
    (['logs', '--worker=3', '--project=p'], [
        "gcloud compute tpus tpu-vm ssh n --worker=3 '--command=tail -n 100 -F"
        " gmvq_jax/run.log' --zone=z --project=p"]),
    (['status'], STATE + [
        f"gcloud compute tpus tpu-vm ssh n --worker=all '--command={WORKER}"
        " status' --zone=z"]),
    (['stop'], [
        f"gcloud compute tpus tpu-vm ssh n --worker=all '--command={WORKER}"
        " stop' --zone=z"]),
])  # fmt: skip
def test_a_dry_run_for_a_tpu(arguments, expected):
  result = run(TPU, '--dry-run', *arguments, TPU_NAME='n', TPU_ZONE='z')
  assert result.returncode == 0, result.stderr
  assert result.stdout.splitlines() == expected


def test_a_dry_run_for_slurm():
  arguments = ['--config=a', '--workdir=c']
  end = f'{ONE} --distributed --config=a --workdir=c\n'
  result = run('bash', SLURM, '--dry-run', *arguments)
  assert result.stdout == f'srun --kill-on-bad-exit=1 --gpu-bind=none {end}'
  result = run('bash', SLURM, '--dry-run', *arguments, SLURM_CPUS_PER_TASK=8)
  assert result.stdout.endswith(f'none --cpus-per-task=8 {end}')


@pytest.mark.parametrize('command, named', [
    ([LOCAL, '--dry-run', '--processes=0'], '--processes=0'),
    ([LOCAL, '--dry-run', '--devices=two'], '--devices=two'),
    ([SLURM, '--dry-run', '--config=a'], '--workdir'),
    ([SLURM, '--workdir=c'], 'sbatch'),
    ([TPU], 'setup, run, logs'),
    ([TPU, 'fly', *THE_TPU], 'fly'),
    ([TPU, 'stop', 'now', *THE_TPU], 'now'),
    ([TPU, 'stop', '--zone=z'], '--name'),
    ([TPU, 'stop', '--name=n'], '--zone'),
    ([TPU, 'logs', '--worker=all', *THE_TPU], '--worker=all'),
    ([TPU, 'run', '--config=a', *THE_TPU], '--workdir'),
    ([TPU, 'run', '--workdir=gs://a/b', *THE_TPU], 'gs://a/b'),
])  # fmt: skip
def test_a_mistake_is_one_line(command, named):
  result = run('bash', *command)
  assert result.returncode == 2
  (line,) = result.stderr.splitlines()
  assert line.startswith('error: ')
  assert named in line


def test_as_many_processes_as_gpus():
  command = ('bash', SLURM, '--dry-run', '--workdir=c')
  given = {'SLURM_NTASKS_PER_NODE': 1, 'SLURM_GPUS_ON_NODE': 4}
  result = run(*command, **given)
  assert result.returncode == 2
  assert '--ntasks-per-node=1 --gpus-per-node=4' in result.stderr
  assert run(*command, **given | {'SLURM_NTASKS_PER_NODE': 4}).returncode == 0


@pytest.mark.parametrize('script, words', [
    (LOCAL, ['--processes=P', '--devices=D', '--dry-run']),
    (SLURM, ['--nodes=2', 'options of sbatch', '--dry-run', 'scancel']),
    (TPU, ['setup', 'run', 'logs', 'status', 'stop', 'restart', '--name=NAME',
           '--zone=ZONE', '--project=', '--worker=N', '--dry-run', 'gs://']),
    (MATRIX, ['launch/matrix.sh 3.13 lowest', 'lower bounds', '--keep']),
])  # fmt: skip
def test_help_says_what_there_is(script, words):
  result = run('bash', script, '--help')
  assert result.returncode == 0
  for word in words:
    assert word in result.stdout
  assert not re.search('^#|set -e', result.stdout, re.MULTILINE)


@pytest.mark.skipif(not shutil.which('shellcheck'), reason='no shellcheck')
def test_shellcheck():
  scripts = [*ROOT.glob('launch/*.s*'), *ROOT.glob('benchmarks/*.sh')]
  assert ROOT / SLURM in scripts
  result = run('shellcheck', '-x', *scripts)
  assert result.returncode == 0, result.stdout


# The matrix of Pythons.


@pytest.fixture
def pythons(stage):
  """Python 3.11 and 3.13, acted, in a repository of their own."""
  shutil.copytree(ROOT / 'launch', stage.path / 'launch')
  shutil.copy(ROOT / 'setup.cfg', stage.path)
  for version in ('3.11', '3.13'):
    stage.act(f'python{version}', SNAKE)
  # As pyenv's, where the version is not installed.
  stage.act('python3.12', '#!/bin/sh\nexit 127\n')
  stage.environment['PYENV_ROOT'] = stage.path / 'pyenv'
  return stage


SNAKE = """#!/usr/bin/env bash
LOG
case "$2 $*" in
  venv*) mkdir -p "$4/bin" && cp "$0" "$4/bin/python" ;;
  *' wheel '*) mkdir -p build/wheel && touch build/wheel/a-1-py3-none-any.whl ;;
  pytest*) exit "${STATUS:-0}" ;;
esac
"""


def matrix(pythons, *arguments, **environment):
  """What was run, without the questions whether it could be."""
  result = run(
      'bash',
      pythons.path / MATRIX,
      *arguments,
      **pythons.environment | environment,
  )
  calls = [call for call in pythons.calls if not call.endswith(' -c ')]
  return result, calls


def test_the_matrix_leaves_out_what_is_not_installed(pythons):
  result, calls = matrix(pythons)
  assert result.returncode == 0, result.stderr
  assert '3.12: left out; there is no such Python.' in result.stdout
  tests = [call for call in calls if 'pytest' in call]
  assert [call.split()[0] for call in tests] == [
      'python3.11', 'python3.13', 'python3.11'
  ]  # fmt: skip
  for call in tests:
    files = re.findall(r'tests/\S+', call)
    assert len(files) > 5
    assert all((ROOT / file).is_file() for file in files)
  installs = [call for call in calls if ' install ' in call]
  assert ['--constraint' in call for call in installs] == [False, False, True]
  assert not list((pythons.path / '.venvs').iterdir())


def test_the_lowest_versions_are_those_of_setup_cfg(pythons):
  result, _ = matrix(pythons, 'lowest')
  assert result.returncode == 0, result.stderr
  lowest = (pythons.path / 'build' / 'lowest.txt').read_text().split()
  setup = (ROOT / 'setup.cfg').read_text()
  bounds = re.findall(r'^  (\S+)>=(\S+)$', setup, re.MULTILINE)
  assert lowest == [f'{name}=={version}' for name, version in bounds]
  assert {'jax', 'tensorflow-datasets', 'pytest'} <= dict(bounds).keys()


def test_the_matrix_fails_where_tests_do(pythons):
  assert matrix(pythons, '3.13', STATUS=1)[0].returncode == 1
  result, _ = matrix(pythons, '3.12')
  assert result.returncode == 2
  assert result.stderr == 'error: 3.12: there is no such Python\n'
  result, _ = matrix(pythons, '3.10')
  assert result.returncode == 2
  assert 'must be 3.11' in result.stderr


# Slurm.


@pytest.fixture
def slurm(stage):
  stage.act('scontrol', '#!/bin/sh\nLOG\n')
  stage.environment |= {'SLURM_JOB_ID': 7, 'VIRTUAL_ENV': stage.path}
  return stage


@pytest.mark.parametrize('status, complete, arguments, requeued', [
    (0, False, [], True),
    (0, True, [], False),
    (143, False, [], True),  # Told to stop before there was anything to save.
    (143, True, [], False),
    (2, False, [], False),
    (137, False, [], False),
    (0, False, ['--mode=evaluate'], False),
    (0, False, ['--mode=report'], False),
])  # fmt: skip
def test_a_job_queues_again_until_the_run_is_complete(
    slurm, status, complete, arguments, requeued
):
  slurm.act('srun', f'#!/bin/sh\nLOG\nexit {status}\n')
  if complete:
    slurm.complete()
  flags = ['--config=a', f'--workdir={slurm.workdir}', *arguments]
  result = run('bash', SLURM, *flags, **slurm.environment)
  assert result.returncode == (0 if requeued else status), result.stderr
  first, *others = slurm.calls
  assert first.startswith('srun ')
  assert first.endswith(f'{ONE} --distributed {" ".join(flags)}')
  assert others == ['scontrol requeue 7'] * requeued


def test_the_signal_before_the_time_limit_saves_and_queues_again(slurm):
  slurm.act('srun', TRAINS)
  job, task = slurm.start('bash', SLURM, f'--workdir={slurm.workdir}')
  os.kill(task, signal.SIGTERM)
  assert job.wait(60) == 0
  assert slurm.calls == ['saved', 'scontrol requeue 7']


def test_scancel_ends_a_job_for_good(slurm):
  slurm.act('srun', TRAINS)
  job, task = slurm.start('bash', SLURM, f'--workdir={slurm.workdir}')
  for process in (job.pid, task):
    os.kill(process, signal.SIGTERM)
  assert job.wait(60) == -signal.SIGTERM
  wait_until(lambda: slurm.calls)
  assert slurm.calls == ['saved']


def test_the_signal_is_for_the_tasks_and_the_job_may_come_back():
  _, *lines = (ROOT / SLURM).read_text().splitlines()
  options = [line.split()[1] for line in lines if line.startswith('#SBATCH')]
  for option in ('--requeue', '--open-mode=append', '--signal=TERM@300'):
    assert option in options
  # Of others sbatch reads none.
  assert all(line.startswith('#SBATCH') for line in lines[: len(options)])


# A TPU, whose only worker is a directory.

GCLOUD = """#!/usr/bin/env bash
LOG
for argument in "$@"; do
  case "$argument" in --command=*) command=${argument#*=} ;; esac
done
case "$4" in
  describe)
    head -n 1 "$STATES"
    sed -i 1d "$STATES"
    ;;
  scp) cp "$5" "$HOME/${6#*:}" ;;
  ssh) cd && bash -c "$command" ;;
esac
"""
PYTHON = """#!/bin/sh
LOG
case "$*" in "-m uv venv "*) install -D "$PROGRAM" .venv/bin/python ;; esac
"""


@pytest.fixture
def tpu(stage):
  """A repository, a worker to copy it to, and what acts the rest."""
  repository, home = stage.path / 'repository', stage.path / 'home'
  home.mkdir()
  shutil.copytree(ROOT / 'launch', repository / 'launch')
  settings = {'cwd': repository, 'GIT_CONFIG_GLOBAL': '/dev/null'}
  git = ('git', '-c', 'user.name=a', '-c', 'user.email=b')
  for command in (('init', '-q'), ('add', '.'), ('commit', '-qm', 'c')):
    assert run(*git, *command, **settings).returncode == 0
  stage.act('gcloud', GCLOUD)
  stage.act('python3', PYTHON)
  stage.environment |= {
      'HOME': home,
      'STATES': stage.path / 'states',
      'PROGRAM': stage.path / 'bin' / 'program',
      'PAUSE_SECONDS': 0,
      'POLL_SECONDS': 0,
      'TPU_NAME': 'n',
      'TPU_ZONE': 'z',
  }

  def launch(*arguments):
    return run(TPU, *arguments, cwd=repository, **stage.environment)

  stage.launch = launch
  (stage.path / 'states').touch()
  stage.log = home / 'gmvq_jax' / 'run.log'
  stage.flags = ['--config=a b', f'--workdir={stage.workdir}']
  yield stage
  launch('stop')


def test_a_run_on_a_tpu_outlives_its_launcher_and_stops(tpu):
  tpu.act('program', TRAINS + '\n')
  assert tpu.launch('setup').returncode == 0
  result = tpu.launch('run', *tpu.flags)
  assert result.returncode == 0, result.stderr
  tpu.training()
  assert ': running: ' in tpu.launch('status').stdout
  again = tpu.launch('run', *tpu.flags)
  assert again.returncode == 2
  assert 'already running' in again.stderr
  assert tpu.launch('stop').returncode == 0
  assert tpu.calls.count('saved') == 1
  assert ': not running: ' in tpu.launch('status').stdout


def test_a_run_on_a_tpu_starts_again_until_it_ends_well(tpu):
  tpu.act('program', """#!/bin/sh
LOG
case "$(grep -c ^program "$CALLS")" in
  1) exit 134 ;;
  2) exit 2 ;;  # The others are not back yet.
esac
""")
  tpu.launch('setup')
  tpu.launch('run', *tpu.flags)
  wait_until(lambda: ': not running: ' in tpu.launch('status').stdout)
  calls = [call for call in tpu.calls if call.startswith('program')]
  flags = ' '.join(tpu.flags)
  assert calls == [f'program -m gmvq_jax.main --distributed {flags}'] * 3
  assert tpu.log.read_text().count('starting again') == 2


@pytest.mark.parametrize('status, times', [(2, 1), (1, 10)])
def test_a_run_on_a_tpu_does_not_fail_forever(tpu, status, times):
  tpu.act('program', f'#!/bin/sh\nLOG\necho "error: x"\nexit {status}\n')
  tpu.launch('setup')
  tpu.launch('run', *tpu.flags)
  wait_until(lambda: ': not running: error: x' in tpu.launch('status').stdout)
  assert sum(call.startswith('program') for call in tpu.calls) == times


def test_a_run_on_a_tpu_needs_its_shared_directory(tpu):
  tpu.act('program', TRAINS)
  tpu.launch('setup')
  result = tpu.launch('run', '--workdir=/not/mounted/run')
  assert result.returncode == 2
  assert 'there is no /not/mounted; is it mounted?' in result.stderr


def test_restart_waits_for_the_tpu(tpu):
  tpu.act('program', TRAINS)
  (tpu.path / 'states').write_text('PREEMPTED\n\nREADY\n')
  result = tpu.launch('restart', *tpu.flags)
  assert result.returncode == 0, result.stderr
  waited = ['n is PREEMPTED; waiting.', 'n is not there; waiting.']
  assert result.stdout.splitlines()[:2] == waited
  tpu.training()


# Kubernetes.


def manifest():
  text = (ROOT / 'docs' / 'kubernetes.md').read_text()
  (block,) = re.findall('```yaml\n(.*?)```', text, re.DOTALL)
  return {part['kind']: part for part in yaml.safe_load_all(block)}


def pod():
  return manifest()['Job']['spec']['template']['spec']


def script():
  (container,) = pod()['containers']
  return [*container['command'], *container['args']]


def test_the_manifest_says_what_the_program_reads():
  job, service = manifest()['Job'], manifest()['Service']
  (container,) = pod()['containers']
  environment = {one['name']: one for one in container['env']}
  names = {name for name in environment if name.startswith('JAX_')}
  read = (ROOT / 'gmvq_jax/runtime/distributed.py').read_text()
  assert names == set(re.findall(r'JAX_[A-Z_]+', read))
  processes = int(environment['JAX_NUM_PROCESSES']['value'])
  assert job['spec']['completionMode'] == 'Indexed'
  assert job['spec']['completions'] == processes
  assert job['spec']['parallelism'] == processes
  field = environment['JAX_PROCESS_ID']['valueFrom']['fieldRef']['fieldPath']
  assert 'batch.kubernetes.io/job-completion-index' in field
  # The name of the first pod, as the headless service gives it.
  host, _ = environment['JAX_COORDINATOR_ADDRESS']['value'].split(':')
  name = job['metadata']['name']
  assert host == f'{name}-0.{service["metadata"]["name"]}'
  assert pod()['subdomain'] == service['metadata']['name']
  assert service['spec']['selector'] == {'job-name': name}
  assert service['spec']['clusterIP'] == 'None'
  assert pod()['restartPolicy'] == 'Never'  # As podFailurePolicy demands.
  assert f'{ONE} --distributed' in script()[-1]


def test_the_volume_of_the_manifest_is_shared():
  claim = manifest()['PersistentVolumeClaim']
  assert claim['spec']['accessModes'] == ['ReadWriteMany']
  volumes = {volume['name']: volume for volume in pod()['volumes']}
  (container,) = pod()['containers']
  mounts = {m['mountPath']: m['name'] for m in container['volumeMounts']}
  source = volumes[mounts['/runs']]['persistentVolumeClaim']['claimName']
  assert source == claim['metadata']['name']
  (workdir,) = [e['value'] for e in container['env'] if e['name'] == 'WORKDIR']
  assert workdir.startswith('/runs/')


@pytest.mark.parametrize('program, status', [
    ('exit 0', 75),
    ('touch "$WORKDIR/summary.json"', 0),
    ('exit 3', 3),
])  # fmt: skip
def test_a_pod_succeeds_when_the_run_is_complete(stage, program, status):
  stage.act('python', f'#!/bin/sh\nLOG\n{program}\n')
  assert run(*script(), **stage.environment).returncode == status
  (call,) = stage.calls
  assert call.endswith(f'--workdir={stage.workdir}')


def test_a_pod_of_a_complete_run_has_nothing_to_do(stage):
  stage.act('python', '#!/bin/sh\nLOG\nexit 1\n')
  stage.complete()
  assert run(*script(), **stage.environment).returncode == 0
  assert not stage.calls


def test_a_pod_that_is_evicted_saves_and_comes_back(stage):
  stage.act('python', TRAINS)
  process, _ = stage.start(*script())
  process.terminate()
  assert process.wait(60) == 75
  assert stage.calls == ['saved']
  rules = manifest()['Job']['spec']['podFailurePolicy']['rules']
  codes = [rule['onExitCodes'] for rule in rules if 'onExitCodes' in rule]
  assert codes == [{'operator': 'In', 'values': [75]}]
  assert {rule['action'] for rule in rules} == {'Ignore'}
