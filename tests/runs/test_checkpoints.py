import errno
import json
import os
import resource
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from dermvq_jax import errors
from dermvq_jax.runs import checkpoints
from dermvq_jax.runs import steps as steps_lib


def tree(value):
  """A tree with the kinds of leaves that a training state has."""
  return {
    'tree': {
      'step': jnp.asarray(value, jnp.int32),
      'params': {'kernel': jnp.full((2, 3), value, jnp.bfloat16)},
      'ema_params': None,
      'opt_state': (jnp.full(4, value / 3), {'count': np.int32(value)}),
    },
    'best': np.float32(value / 7),
  }


def weights(value):
  return {
    'params': {'w': np.full(3, value, np.float32)},
    'model_state': {'codebook': {'counts': np.arange(3.0)}},
  }


def assert_same(restored, expected):
  assert jax.tree.structure(restored) == jax.tree.structure(expected)
  for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(expected)):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a, b)


@pytest.fixture
def folder(tmp_path):
  return tmp_path / 'vqvae'


def saved(folder, *steps):
  store = checkpoints.Checkpoints(folder)
  for step in steps:
    store.save(step, tree(step))
  store.close()
  return checkpoints.Checkpoints(folder)


def test_restores_what_was_saved(folder):
  store = saved(folder, 3, 5)
  assert store.latest_step() == 5
  step, restored = store.restore(tree(0))
  store.close()
  assert step == 5
  assert_same(restored, tree(5))


def test_keeps_the_latest_two(folder):
  saved(folder, 1, 2, 3).close()
  assert sorted(p.name for p in (folder / 'checkpoints').iterdir()) == [
    '2',
    '3',
  ]


def test_nothing_saved(folder):
  store = checkpoints.Checkpoints(folder)
  assert store.latest_step() is None
  assert store.restore(tree(1)) == (0, None)
  store.close()


def test_what_was_saved_does_not_change_with_donated_buffers(folder):
  """A save continues in the background while the next step runs."""
  step = jax.jit(lambda x: x + 1, donate_argnums=0)
  value = jnp.zeros((512, 512))
  store = checkpoints.Checkpoints(folder)
  store.save(1, {'x': value})
  for _ in range(5):
    value = step(value)
  store.close()
  store = checkpoints.Checkpoints(folder)
  np.testing.assert_array_equal(store.restore({'x': value})[1]['x'], 0)
  store.close()


def test_only_complete_steps_count(folder):
  """The remains of a killed save are ignored, then removed."""
  saved(folder, 1, 2).close()
  states = folder / 'checkpoints'
  partial = states / '3.orbax-checkpoint-tmp'
  shutil.copytree(states / '2', partial)
  store = checkpoints.Checkpoints(folder)
  assert store.latest_step() == 2
  assert store.restore(tree(0))[0] == 2
  store.save(3, tree(3))
  store.close()
  assert not partial.exists()


def test_best_is_replaced(folder):
  store = checkpoints.Checkpoints(folder)
  for step in (5, 10):
    store.save_best(step, weights(step))
  store.close()
  loaded = checkpoints.load_best(folder)
  assert [p.name for p in (folder / 'best').iterdir()] == ['10']
  jax.tree.map(np.testing.assert_array_equal, loaded, weights(10))


def test_any_orbax_reads_the_best_weights(folder):
  store = checkpoints.Checkpoints(folder)
  store.save_best(5, weights(5))
  store.close()
  with ocp.StandardCheckpointer() as reader:
    loaded = reader.restore(folder / 'best' / '5' / 'default')
  jax.tree.map(np.testing.assert_array_equal, loaded, weights(5))


@pytest.mark.parametrize('step', [10, 7])
def test_best_after_going_back(folder, step):
  """A resumed run reaches steps again that were the best before the kill."""
  store = checkpoints.Checkpoints(folder)
  store.save_best(10, weights(10))
  store.close()
  store = checkpoints.Checkpoints(folder)
  store.save_best(step, weights(1))
  store.close()
  np.testing.assert_array_equal(checkpoints.load_best(folder)['params']['w'], 1)
  assert [p.name for p in (folder / 'best').iterdir()] == [str(step)]


def test_no_best_weights(folder):
  with pytest.raises(
    errors.UserError, match='no trained weights.*train --config=vqvae'
  ):
    checkpoints.load_best(folder)
  checkpoints.Checkpoints(folder).close()  # started, nothing saved yet
  with pytest.raises(errors.UserError, match='no trained weights'):
    checkpoints.load_best(folder)


def test_readers_do_not_touch_what_a_trainer_is_writing(folder):
  store = checkpoints.Checkpoints(folder)
  store.save_best(5, weights(5))
  store.close()
  writing = folder / 'best' / '10.orbax-checkpoint-tmp'
  shutil.copytree(folder / 'best' / '5', writing)
  loaded = checkpoints.load_best(folder)
  np.testing.assert_array_equal(loaded['params']['w'], 5)
  assert writing.exists()


def test_relative_folders(folder, monkeypatch):
  folder.mkdir()
  monkeypatch.chdir(folder.parent)
  store = checkpoints.Checkpoints('vqvae')
  store.save_best(1, weights(1))
  store.close()
  np.testing.assert_array_equal(
    checkpoints.load_best('vqvae')['params']['w'], 1
  )


# Damage.


def files_in(folder):
  return sorted(p for p in folder.rglob('*') if p.is_file())


def flip(path, rng):
  data = bytearray(path.read_bytes())
  data[rng.integers(len(data))] ^= 1 << rng.integers(8)
  path.write_bytes(data)


# What orbax leaves after failed reads.
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_flipped_bits_are_noticed_or_change_nothing(folder, tmp_path):
  """50 of them, two and more in each file of the latest checkpoint."""
  saved(folder, 1, 2).close()
  names = [p.relative_to(folder) for p in files_in(folder / 'checkpoints/2')]
  rng = np.random.default_rng(0)
  noticed = 0
  assert len(names) > 10
  for i in range(max(50, 2 * len(names))):
    copy = shutil.copytree(folder, tmp_path / str(i))
    flip(copy / names[i % len(names)], rng)
    store = checkpoints.Checkpoints(copy)
    step, restored = store.restore(tree(0))
    store.close()
    assert step in (1, 2)
    assert_same(restored, tree(step))
    assert (copy / 'checkpoints' / '2').exists() == (step == 2)
    assert (copy / 'checkpoints' / '2.damaged').exists() == (step == 1)
    noticed += step == 1
  assert noticed > 10  # Not all files are read.


@pytest.mark.parametrize(
  'damage',
  ['cut', 'gone', 'renamed', 'checksums cut', 'no numbers', 'other numbers'],
)
def test_a_damaged_one_is_named_and_the_one_before_used(folder, damage, caplog):
  saved(folder, 1, 2).close()
  step_folder = folder / 'checkpoints' / '2'
  arrays = files_in(step_folder / 'default' / 'd')
  largest = max(arrays, key=lambda p: p.stat().st_size)
  checksums = step_folder / 'checksums' / 'metadata'
  if damage == 'cut':
    largest.write_bytes(largest.read_bytes()[:-9])
  elif damage == 'gone':
    largest.unlink()
  elif damage == 'renamed':
    shutil.rmtree(step_folder)
    shutil.copytree(folder / 'checkpoints' / '1', step_folder)
  else:
    text = {
      'checksums cut': checksums.read_text()[:-9],
      'no numbers': '[]',
      'other numbers': json.dumps({'step': 2, 'crc32': {}}),
    }
    checksums.write_text(text[damage])
  store = checkpoints.Checkpoints(folder)
  step, restored = store.restore(tree(0))
  assert step == 1
  assert_same(restored, tree(1))
  assert f'{step_folder} is damaged' in caplog.text
  assert f'{step_folder}.damaged, and the one before it is used' in caplog.text
  assert store.latest_step() == 1
  store.save(2, tree(7))  # Its place is free.
  store.close()
  store = checkpoints.Checkpoints(folder)
  step, restored = store.restore(tree(0))
  store.close()
  assert step == 2
  assert_same(restored, tree(7))


def test_nothing_whole_is_no_new_start(folder):
  saved(folder, 1, 2).close()
  for file in files_in(folder / 'checkpoints'):
    file.write_bytes(b'')
  before = files_in(folder)
  store = checkpoints.Checkpoints(folder)
  with pytest.raises(errors.UserError, match='no checkpoint in .* is intact'):
    store.restore(tree(0))
  store.close()
  assert files_in(folder) == before


def test_without_checksums_it_says_so(folder, caplog):
  """Checkpoints of early versions have no checksums."""
  saved(folder, 1).close()
  shutil.rmtree(folder / 'checkpoints' / '1' / 'checksums')
  store = checkpoints.Checkpoints(folder)
  assert store.restore(tree(0))[0] == 1
  store.close()
  assert '1 has no checksums' in caplog.text


def test_damaged_best_weights(folder, tmp_path, caplog):
  store = checkpoints.Checkpoints(folder)
  store.save_best(5, weights(5))
  store.close()
  assert checkpoints.Checkpoints(folder).best_is_intact()
  # Readable, but with other numbers.
  other = checkpoints.Checkpoints(tmp_path / 'other')
  other.save_best(5, weights(6))
  other.close()
  shutil.rmtree(folder / 'best' / '5' / 'default')
  shutil.copytree(tmp_path / 'other/best/5/default', folder / 'best/5/default')
  with pytest.raises(errors.UserError) as e:
    checkpoints.load_best(folder)
  assert f'{folder}/best/5 are damaged' in str(e.value)
  assert '1 of 2 arrays differ' in str(e.value)
  assert 'train again: the same command gives the same' in str(e.value)
  store = checkpoints.Checkpoints(folder)
  assert not store.best_is_intact()
  assert 'are damaged' in caplog.text
  store.save_best(10, weights(10))
  store.close()
  assert checkpoints.load_best(folder)['params']['w'][0] == 10


def test_verify(folder):
  store = saved(folder, 1, 2)
  store.save_best(2, weights(2))
  store.close()
  assert list(checkpoints.verify(folder)) == [
    ('checkpoints', 1, ''),
    ('checkpoints', 2, ''),
    ('best', 2, ''),
  ]
  (folder / 'checkpoints/1/default/manifest.ocdbt').unlink()
  (folder / 'best/2/checksums/metadata').write_text('{')
  problems = [problem for _, _, problem in checkpoints.verify(folder)]
  assert [bool(problem) for problem in problems] == [True, False, True]
  assert all('unreadable' in problem for problem in problems if problem)


def test_old_steps_vanish_at_once(folder, monkeypatch):
  """A kill during the removal leaves no half-deleted step among the others."""
  store = saved(folder, 1, 2)
  store._states.wait_until_finished()
  states = folder / 'checkpoints'
  whole = len(files_in(states / '1'))
  store.save(3, tree(3))
  store._states.wait_until_finished()
  assert sorted(p.name for p in states.iterdir()) == ['2', '3', 'removed']
  assert [p.name for p in (states / 'removed').iterdir()] == ['1']
  assert len(files_in(states / 'removed')) == whole
  store.close()
  assert not (states / 'removed').exists()


def test_a_full_disk_is_one_line(folder):
  """A limit on the size of files fails in the same way as a full disk."""
  saved(folder, 1).close()
  store = checkpoints.Checkpoints(folder)
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  resource.setrlimit(resource.RLIMIT_FSIZE, (2**14, before[1]))
  try:
    with pytest.raises(
      errors.UserError, match='File too large; make room'
    ) as e:
      store.save(2, {'x': np.random.default_rng(0).normal(size=10**5)})
      store.close()
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, ignored)
  assert str(folder) in str(e.value) and '\n' not in str(e.value)
  store = checkpoints.Checkpoints(folder)
  assert store.restore(tree(0))[0] == 1
  store.close()


@pytest.mark.skipif(os.geteuid() == 0, reason='root may write anywhere')
def test_a_read_only_folder_is_one_line(folder):
  saved(folder, 1).close()
  (folder / 'checkpoints').chmod(0o500)
  try:
    with pytest.raises(errors.UserError, match='Permission denied; make room'):
      store = checkpoints.Checkpoints(folder)
      store.save(2, tree(2))
      store.close()
  finally:
    (folder / 'checkpoints').chmod(0o700)


# Folders, links and the disk.


@pytest.mark.parametrize(
  'name', ['lr[0.1]', '[!a]', ']', 'a*b', 'a?b', '{a}', 'a%20 #|é']
)
def test_names_that_look_like_patterns(tmp_path, name):
  """They are saved right, and nothing of a folder that fits is mixed in."""
  others = ['aXb', 'lr0', 'b']
  for i, other in enumerate(others):
    store = checkpoints.Checkpoints(tmp_path / other / 'vqvae')
    store.save_best(1, {'params': {f'other{i}': np.zeros(2)}})
    store.close()
  folder = tmp_path / name / 'vqvae'
  store = checkpoints.Checkpoints(folder)
  store.save_best(1, weights(1))
  store.save(1, tree(1))
  store.close()
  jax.tree.map(
    np.testing.assert_array_equal, checkpoints.load_best(folder), weights(1)
  )
  store = checkpoints.Checkpoints(folder)
  step, restored = store.restore(tree(0))
  store.close()
  assert step == 1
  assert_same(restored, tree(1))
  assert not any(problem for _, _, problem in checkpoints.verify(folder))
  shutil.move(tmp_path / name, tmp_path / 'plain')
  checkpoints.load_best(tmp_path / 'plain' / 'vqvae')


@pytest.mark.parametrize('name', ['a\\b', 'gs:', 'a\udcff'])
def test_names_that_are_refused(tmp_path, name):
  """A backslash is a slash for tensorstore, 'gs:' is a bucket for orbax."""
  folder = tmp_path / name / 'vqvae'
  for use in (checkpoints.Checkpoints, checkpoints.load_best):
    with pytest.raises(errors.UserError, match='cannot be kept') as e:
      use(folder)
    str(e.value).encode()  # It can be printed.
  assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
  'number',
  [
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EACCES,
    errno.EROFS,
    errno.EFBIG,
    errno.EIO,
    errno.ESTALE,
  ],
)
def test_failures_of_the_disk_are_one_line(folder, number):
  """tensorstore puts the system's words into an exception of its own."""
  match = f'cannot save in .*: {os.strerror(number)[:13]}.*; make room'
  with (
    pytest.raises(errors.UserError, match=match),
    checkpoints._saving(folder),
  ):
    raise ValueError(f'INTERNAL: Error writing: [{os.strerror(number)}]')


@pytest.mark.parametrize('kind', ['checkpoints', 'best'])
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_what_cannot_be_read_back_ends_the_training(folder, monkeypatch, kind):
  monkeypatch.setattr(steps_lib._LiteralPath, 'glob', lambda *args: iter(()))
  store = checkpoints.Checkpoints(folder)
  save = {'checkpoints': store.save, 'best': store.save_best}[kind]
  save(3, weights(3))
  with pytest.raises(errors.UserError, match=f'{kind}/3 cannot be read back'):
    save(4, weights(4))
  assert [p.name for p in (folder / kind).iterdir()] == ['3']
  store.close()
  store = checkpoints.Checkpoints(folder)
  {'checkpoints': store.save, 'best': store.save_best}[kind](5, weights(5))
  with pytest.raises(errors.UserError, match=f'{kind}/5 cannot be read back'):
    store.close()


def test_only_the_first_save_is_read_back(folder, monkeypatch):
  read, real = [], steps_lib.read
  monkeypatch.setattr(
    steps_lib, 'read', lambda path: read.append(path.name) or real(path)
  )
  saved(folder, 1, 2, 3).close()
  assert read == ['1']


def test_a_step_is_on_the_disk_before_an_older_one_is_removed(
  folder, monkeypatch
):
  calls = []
  fsync, rename, replace = os.fsync, os.rename, os.replace

  def record_sync(descriptor):
    calls.append(os.fstat(descriptor).st_ino)
    fsync(descriptor)

  def recorder(real):
    def record(old, new):
      calls.append(os.path.relpath(new, folder))
      real(old, new)

    return record

  store = saved(folder, 1, 2)
  monkeypatch.setattr(os, 'fsync', record_sync)
  monkeypatch.setattr(os, 'rename', recorder(rename))
  monkeypatch.setattr(os, 'replace', recorder(replace))
  store.save(3, tree(3))
  store._states.wait_until_finished()
  named = calls.index('checkpoints/3')
  removed = calls.index('checkpoints/removed/1')
  states = folder / 'checkpoints'
  everything = {p.stat().st_ino for p in (states / '3').rglob('*')}
  assert everything | {(states / '3').stat().st_ino} <= set(calls[:named])
  assert named < removed
  assert states.stat().st_ino in calls[named:removed]
  store.close()


@pytest.mark.parametrize('name', ['.', 'best', 'checkpoints/5', 'config.json'])
def test_links_are_refused(folder, tmp_path, name):
  target = tmp_path / 'target'
  target.mkdir()
  link = folder / name
  link.parent.mkdir(parents=True, exist_ok=True)
  link.symlink_to(target)
  with pytest.raises(errors.UserError, match='is a link to .*target'):
    checkpoints.Checkpoints(folder)
  assert not os.listdir(target)


# Best weights that are lost.


def weights_of(tree):
  return {'params': tree['tree']['params'], 'model_state': {}}


def with_best(folder, step):
  """Steps 4 and 5 and the weights of one of them."""
  store = saved(folder, 4, 5)
  store.save_best(step, weights_of(tree(step)))
  store.close()


@pytest.mark.parametrize('damage', ['none', 'gone', 'damaged'])
@pytest.mark.parametrize('step', [4, 5])
def test_best_weights_are_rebuilt(folder, caplog, damage, step):
  with_best(folder, step)
  expected = checkpoints.load_best(folder)
  if damage == 'gone':
    shutil.rmtree(folder / 'best')
  elif damage == 'damaged':
    (folder / f'best/{step}/default/manifest.ocdbt').write_bytes(b'')
  store = checkpoints.Checkpoints(folder)
  like = tree(0)
  assert store.repair_best(0.5, [step, 9], like, weights_of, True) == 0.5
  store.close()
  assert_same(checkpoints.load_best(folder), expected)
  assert [p.name for p in (folder / 'best').iterdir()] == [str(step)]
  rebuilt = f'is rebuilt from {folder}/checkpoints/{step}.'
  assert (rebuilt in caplog.text) == (damage != 'none')


@pytest.mark.parametrize('steps', [[], [3], [4]])
def test_best_weights_that_no_checkpoint_holds(folder, caplog, steps):
  with_best(folder, 5)
  shutil.rmtree(folder / 'best')
  (folder / 'checkpoints/4/default/manifest.ocdbt').unlink()
  store = checkpoints.Checkpoints(folder)
  lost = np.inf, steps, tree(0), weights_of
  assert store.repair_best(*lost, True) == np.inf  # There never were any.
  lost = 0.5, *lost[1:]
  assert store.repair_best(*lost, False) == np.inf
  assert 'are lost' in caplog.text and 'kept instead' in caplog.text
  with pytest.raises(errors.UserError, match='from a copy, or move') as e:
    store.repair_best(*lost, True)
  assert ('damaged as well' in str(e.value)) == (steps == [4])
  assert not steps or f'of step {steps[0]} in {folder}/best' in str(e.value)
  store.close()


def test_missing_checksums_are_found(folder):
  store = saved(folder, 1)
  store.close()
  sums = folder / 'checkpoints' / '1' / 'checksums'
  shutil.rmtree(sums)
  assert list(checkpoints.verify(folder)) == [
    ('checkpoints', 1, f'{sums} is missing')
  ]
