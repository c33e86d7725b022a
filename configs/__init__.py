"""Run configurations: `--config=vqvae:demo` is `vqvae.get_config('demo')`."""
