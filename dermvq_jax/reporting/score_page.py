"""`dermvq score`: a folder with a page about images unlike the others."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from dermvq_jax import files, inference
from dermvq_jax.data import images
from dermvq_jax.evaluation import result_tables
from dermvq_jax.generation import scores
from dermvq_jax.outliers import restoration
from dermvq_jax.reporting import page, pictures
from dermvq_jax.runs import run as run_lib

_ABOUT = (
  'The p-value of an image says how often the validation images of the run are '
  'at least as strange. Of images of new lesions that were taken in the same '
  'way as the validation images, at most a share alpha is flagged at level '
  'alpha. It does not hold for images of another source: there, many may be '
  'flagged because the source differs.',
  'A flag means that the image is unlike the images that the run was trained '
  'on. It does not mean that the image is bad, or that the lesion is ill. An '
  'image without a flag can still be wrong.',
)
_LABELS = (
  'p: of held-out images of that class, the share whose label fits their codes '
  'as badly; at least 1 / (1 + their lesions). Probability of the label: by '
  "Bayes' rule with the prior. A small value is a reason to look at the label, "
  'no proof that it is wrong.'
)
_NUM_LABELS = 32
# Pictures are enlarged to this side or more, so that their titles fit.
_SHOWN_SIZE = 96


def score(
  run: run_lib.Run, out: epath.PathLike, **kwargs: Any
) -> scores.Scored:
  """Scores images and writes `scores.csv`, `maps/` and `index.html`.

  Args:
    run: a run with trained VQ-VAE and prior.
    out: the new folder.
    **kwargs: what to score; see `scores.score`.

  Raises:
    UserError: the run is not trained, no image is readable, `out` exists, or
      an argument is wrong.
  """
  model = inference.Model(run)
  with files.new_folder(out) as folder:
    scored = scores.score(model, **kwargs)
    scores.write(folder, scored)
    files.write_text(
      folder / 'index.html',
      page.render(
        'Which images are unlike the others',
        f'{len(scored.rows):,} images, {scored.num_flagged:,} flagged at '
        f'alpha {scored.alpha:g}; run {run.workdir}',
        _sections(scored, _restored(model, scored)),
      ),
    )
  scores.log(scored)
  logging.info('Wrote %s', out)
  return scored


def _restored(
  model: inference.Model, scored: scores.Scored
) -> np.ndarray | None:
  """The strangest images without what is strange; None if none can be made."""
  if not scored.strangest or not model.knows_null_label:
    return None
  pixels = np.stack([strange.image for strange in scored.strangest])
  maps = np.stack([strange.strangeness for strange in scored.strangest])
  return restoration.restore(model, pixels, maps).images


def _sections(
  scored: scores.Scored, restored: np.ndarray | None
) -> list[page.Section]:
  """The sections of the page; `restored` may be None."""
  sections = [
    page.Section(
      'list',
      'The strangest images',
      text=[*_ABOUT, scored.drift],
      tables=[_table([strange.row for strange in scored.strangest])],
    ),
    page.Section(
      'where',
      'Where they are strange',
      text=[
        'Orange: pixels that are reconstructed badly, whose codes are '
        'surprising or far from the codebook, or whose colour differs from the '
        'rest; full from 3 standard deviations of held-out pixels on. Redrawn: '
        'what is strange is drawn anew by the prior, given the codes before '
        'it; it shows what the run would expect there.'
      ],
      figures=[
        _figure(i, strange, None if restored is None else restored[i])
        for i, strange in enumerate(scored.strangest)
      ],
    ),
  ]
  if 'label' in scored.rows[0]:
    sections.append(
      page.Section(
        'labels',
        'Labels that fit worst',
        text=[_LABELS],
        tables=[_label_table(scored.rows)],
      )
    )
  if scored.problems:
    sections.append(
      page.Section(
        'left_out',
        'Left out',
        listings=[
          page.Listing(
            'Files and folders',
            '\n'.join(scored.problems),
            open=True,
          )
        ],
      )
    )
  return sections


def _table(rows: Sequence[dict[str, Any]]) -> result_tables.Table:
  return result_tables.Table(
    ('image', 'p', 'reasons'),
    [[row['image'], row['p_value'], row['reasons']] for row in rows],
    f'The first {len(rows):,} of scores.csv',
    words=True,
  )


def _label_table(rows: Sequence[dict[str, Any]]) -> result_tables.Table:
  columns = ('image', 'label', 'label_p_value', 'label_probability')
  worst = sorted(rows, key=lambda r: [float(r[c]) for c in columns[2:]])
  return result_tables.Table(
    ('image', 'label', 'p', 'probability of the label'),
    [[row[name] for name in columns] for row in worst[:_NUM_LABELS]],
    words=True,
  )


def _figure(
  number: int, strange: scores.Strange, redrawn: np.ndarray | None
) -> page.Figure:
  row = strange.row
  panels = {
    'image': strange.image,
    'reconstruction': strange.reconstruction,
    'where': strange.overlay,
  }
  if redrawn is not None:
    panels['redrawn'] = redrawn
  times = -(-_SHOWN_SIZE // strange.image.shape[0])
  shown = [p.repeat(times, 0).repeat(times, 1) for p in panels.values()]
  return page.Figure(
    f'strange_{number}',
    f'{row["image"]}: {row["reasons"] or "nothing strange"}',
    png=pictures.labelled_sheet(
      images.sheet([np.stack(shown)]),
      [f'p = {row["p_value"]}'],
      list(panels),
    ),
  )
