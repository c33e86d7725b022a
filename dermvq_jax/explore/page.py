"""The page and its tabs."""

import pathlib

import gradio as gr

from dermvq_jax.explore import (
  codes,
  completion,
  data,
  markup,
  sampling,
  sweeps,
  training,
)
from dermvq_jax.explore import session as session_lib

STYLE = pathlib.Path(__file__).with_name('page.css')
# What each tab shows, by its title.
_TABS = {
  'Sample': sampling.add,
  'Sweep': sweeps.add,
  'Codes': codes.add,
  'Complete': completion.add,
  'Training': training.add,
  'Data': data.add,
}
_NEED_PRIOR = ('Sample', 'Sweep', 'Complete')


def theme() -> gr.themes.Base:
  """The colours; its fonts come with gradio."""
  soft, soft_dark = '*neutral_600', '*neutral_300'  # gradio's are hard to read
  return gr.themes.Default(primary_hue='blue').set(
    body_text_color_subdued=soft,
    body_text_color_subdued_dark=soft_dark,
    block_info_text_color=soft,
    block_info_text_color_dark=soft_dark,
  )


def make(session: session_lib.Session) -> gr.Blocks:
  """Makes the page of a session."""
  with gr.Blocks(
    title=f'dermvq explore {session.names[0]}', analytics_enabled=False
  ) as page:
    gr.HTML(_heading(session))
    why_no_prior = session.why_no_prior()
    for number, (title, add) in enumerate(_TABS.items()):
      with gr.Tab(title) as tab:
        if why_no_prior and title in _NEED_PRIOR:
          gr.HTML(f'<p>{markup.text(why_no_prior)}</p>')
        else:
          # The first tab is open already.
          add(session, tab.select if number else page.load)
  return page


def _heading(session: session_lib.Session) -> str:
  model = session.model
  h, w = model.grid
  return (
    f'<h1>{markup.text(session.names[0])}</h1><p class="soft">'
    f'{markup.text(model.run.vqvae.facts["dataset"])}: images of '
    f'{model.image_size} px as {h}x{w} codes of {model.codebook_size}. '
    'Images that this page makes are synthetic: not of patients, not for '
    'diagnosis.</p>'
  )
