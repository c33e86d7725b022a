"""Makes codes and folders of images with a trained run."""
