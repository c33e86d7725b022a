"""Builds the documentation: `make docs`."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import generated

import dermvq_jax

project = 'dermvq_jax'
author = 'The dermvq_jax authors'
copyright = 'The dermvq_jax authors; Apache-2.0'
version = release = dermvq_jax.__version__

extensions = [
  'myst_nb',
  'sphinx.ext.autodoc',
  'sphinx.ext.napoleon',
  'sphinx_copybutton',
]
exclude_patterns = ['_build']

# Notebooks are shown with the outputs that they are stored with.
nb_execution_mode = 'off'
myst_heading_anchors = 4
myst_enable_extensions = ['colon_fence', 'deflist']

# Shapes and code in docstrings are written in single backticks.
default_role = 'code'
# Most blocks are commands and trees of files.
highlight_language = 'none'
autodoc_member_order = 'bysource'
autodoc_typehints = 'signature'
autodoc_default_options = {'members': True}
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # Fields of dataclasses would be there twice.
autodoc_preserve_defaults = True

html_theme = 'furo'
html_title = f'dermvq_jax {release}'
html_static_path = []


def setup(app):
  """Fills in the tables that are made from the code."""
  app.connect('source-read', generated.fill_in)
