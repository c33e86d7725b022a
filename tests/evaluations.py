"""A made-up evaluation."""

from dermvq_jax.evaluation import results


def set_labels(recall):
  return results.SetLabels(
    num_images=2,
    balanced_accuracy=0.5,
    standard_error=0.25,
    recalls={'mel': recall, 'nv': None},
    confusion=[[1, 1], [0, 0]],
  )


def an_evaluation():
  """An evaluation in which everything was measured."""
  row = results.ClassLikelihood(2, 55.5, 5.0, 0.1, 0.5)
  comparison = results.SetComparison(8, 1.5, 0.01, 0.005, 0.5, 0.4, 0.3, 0.2)
  return results.Evaluation(
    split='val',
    dataset='images/64',
    seed=7,
    controls={'temperature': 1.0, 'top_k': 0},
    space='classifier',
    weights={'vqvae': '3-0', 'prior': '5-1'},
    made_by=results.MadeBy('dermvq evaluate', 'today', {'jax': '1'}, '1 cpu'),
    prior=results.PriorResult(
      dataset='codes/x',
      num_images=2,
      nll_nats=55.5,
      bits_per_code=5.0,
      bits_per_dim=0.1,
      accuracy=0.5,
      balanced_accuracy=0.5,
      classes={
        'mel': row,
        'nv': results.ClassLikelihood(0, None, None, None, None),
      },
      confusion=[[1, 1], [0, 0]],
    ),
    reconstruction=results.ReconstructionResult(2, 0.01, 0.3, 20.0, 0.9, 0.1),
    texture=results.TextureResult(['1/4 to 1/2'], {'samples': [0.9]}),
    groups={
      'sex': {
        'male': results.GroupResult(
          2, results.Estimate(5.0, 4.5, 5.5), None, None
        )
      }
    },
    generation=results.GenerationResult(
      num_features=16,
      num_real=9,
      floor_split='test',
      sets={'samples': comparison},
      classes={'mel': {'samples': comparison}},
      kid_over_independent=None,
    ),
    labels=results.LabelsResult(
      real=set_labels(0.5),
      reconstructions=set_labels(0.0),
      samples=set_labels(1.0),
      samples_over_real=2.0,
    ),
    memorisation=results.MemorisationResult(
      num_samples=8,
      num_train=90,
      num_held_out=20,
      spaces={
        'pixels': results.SpaceMemorisation(
          0.57, 1, 2, {'0': 0.5}, {'0': 0.6}, 0.2, 0.9, 0.8, 0.01
        )
      },
    ),
  )
