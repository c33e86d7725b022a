"""What a training takes from the run in `config.start_from`."""

# Fields of the config, by its task.
FIELDS = {
  'vqvae': ('model', 'quantizer', 'dataset'),
  'prior': ('prior', 'conditions', 'loss', 'weak_share'),
}
