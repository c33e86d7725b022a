"""Exports on the Hugging Face Hub: `hf://OWNER/NAME@REVISION`.

The extra `hub` downloads them into its cache; a second use finds them there,
also without a network. Only the files that an export is used by are taken.
"""

import contextlib
import dataclasses
import os
import re
from collections.abc import Iterator

from absl import logging
from etils import epath

from dermvq_jax import __version__, errors

_SCHEME = 'hf://'
_FORM = f'{_SCHEME}OWNER/NAME or {_SCHEME}OWNER/NAME@REVISION'
_WORD = r'[A-Za-z0-9_][A-Za-z0-9._-]*'
_ADDRESS = re.compile(
  rf'{_SCHEME}(?P<repository>{_WORD}/{_WORD})(@(?P<revision>{_WORD}(/{_WORD})*))?'
)
# Samples are left out: they are many files, and nothing reads them.
_FILES = (
  'README.md',
  *('*/config.json', '*/weights.safetensors'),
  *('report/*.json', 'report/*.npz'),
)


def is_address(workdir: epath.PathLike) -> bool:
  """Whether a workdir is an address on the hub, be it right or wrong."""
  return str(workdir).startswith(_SCHEME)


@dataclasses.dataclass(frozen=True)
class Address:
  """The address of an export.

  Attributes:
    repository: 'OWNER/NAME'.
    revision: a branch, a tag or a commit; None: the main branch.
  """

  repository: str
  revision: str | None

  def __str__(self) -> str:
    at = f'@{self.revision}' if self.revision else ''
    return f'{_SCHEME}{self.repository}{at}'


def parse(text: str) -> Address:
  """Reads an address.

  Raises:
    UserError: it has another form.
  """
  found = _ADDRESS.fullmatch(text)
  if not found:
    raise errors.UserError(f'{text!r} is not {_FORM}')
  return Address(found['repository'], found['revision'])


def download(address: Address) -> epath.Path:
  """Downloads an export, unless it is in the cache already.

  A branch or a tag is looked up each time; without a network, what it meant
  last time is used.

  Returns:
    The export's folder, in the cache. Its files are links within the cache.

  Raises:
    UserError: the extra `hub` is not installed, there is no such repository or
      revision, it is not public, it has no export, or the hub is not reached.
  """
  try:
    import huggingface_hub
  except ImportError:
    raise errors.UserError(
      f'{address} needs a client for the hub: pip install huggingface_hub'
    ) from None
  with _explained(address):
    folder = huggingface_hub.snapshot_download(
      address.repository,
      revision=address.revision,
      allow_patterns=list(_FILES),
      library_name='dermvq_jax',
      library_version=__version__,
    )
  commit = os.path.basename(folder)
  if not os.path.exists(os.path.join(folder, 'vqvae', 'weights.safetensors')):
    raise errors.MissingError(
      f'{address} (revision {commit}) is not an export of dermvq; make one '
      'with dermvq export and upload its folder'
    )
  logging.info('%s is revision %s, in %s', address, commit, folder)
  return epath.Path(folder)


def is_cached(file: epath.PathLike) -> bool:
  """Whether a file of a phase is a link that the hub's client has made.

  It keeps REPOSITORY/snapshots/COMMIT/PHASE/FILE as a link to a file of
  REPOSITORY/blobs. A link of a stranger that leads elsewhere is none.
  """
  phase = os.path.realpath(os.path.dirname(file))
  repository = os.path.dirname(os.path.dirname(os.path.dirname(phase)))
  blobs = os.path.join(repository, 'blobs')
  return os.path.dirname(os.path.realpath(file)) == blobs


@contextlib.contextmanager
def _explained(address: Address) -> Iterator[None]:
  """Turns errors of the hub's client into lines for users."""
  from huggingface_hub import errors as hub_errors

  repository = f'{_SCHEME}{address.repository}'
  try:
    yield
  except hub_errors.GatedRepoError as e:
    raise errors.UserError(
      f'{repository} asks its users to apply for access; apply on its page on '
      'the hub, then log in with hf auth login'
    ) from e
  except hub_errors.RepositoryNotFoundError as e:
    raise errors.MissingError(
      f'{repository} does not exist or is private; check the name, or log in '
      'with hf auth login as somebody who may read it'
    ) from e
  except hub_errors.RevisionNotFoundError as e:
    raise errors.MissingError(
      f'{repository} has no revision {address.revision}; give one of its '
      'branches, tags or commits'
    ) from e
  except hub_errors.HFValidationError as e:
    raise errors.UserError(
      f'{str(address)!r} is not {_FORM} ({errors.one_line(e)})'
    ) from e
  except hub_errors.HfHubHTTPError as e:
    raise errors.UserError(
      f'the hub refused {address} (status {e.response.status_code}); try again '
      'later, or log in again with hf auth login'
    ) from e
  except (hub_errors.HTTPError, hub_errors.EntryNotFoundError) as e:
    raise errors.UserError(
      f'{address} is not in the cache, and the hub cannot be reached '
      f'({type(e.__cause__ or e).__name__}); check the network and try again'
    ) from e
