"""Options of a small VQ-VAE that trains against a discriminator."""

OPTIONS = (
  '--config.loss.adversarial=1',
  '--config.loss.feature_matching=10',
  '--config.discriminator.features=8',
  '--config.discriminator.num_stages=2',
  '--config.discriminator.start=0',
  '--config.discriminator_optim.learning_rate=3e-4',
  '--config.discriminator_optim.schedule=constant',
  '--config.discriminator_optim.warmup_steps=0',
)
