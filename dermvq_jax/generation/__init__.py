"""What a trained run makes: codes, and folders of images."""
