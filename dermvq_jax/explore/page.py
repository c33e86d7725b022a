"""The page and its tabs."""

import pathlib

import gradio as gr

from dermvq_jax.explore import codes, markup, sampling, sweeps
from dermvq_jax.explore import session as session_lib

STYLE = pathlib.Path(__file__).with_name('page.css')
# Tabs by their titles: what a run without a prior has, and what it has not.
_NEED_PRIOR = {'Sample': sampling.add, 'Sweep': sweeps.add, 'Codes': codes.add}


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
    for title, add in _NEED_PRIOR.items():
      with gr.Tab(title):
        if why_no_prior:
          gr.HTML(f'<p>{markup.text(why_no_prior)}</p>')
        else:
          add(session, page)
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
