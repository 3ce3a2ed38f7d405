"""What a configuration can name: models, losses, label noise, strategies."""
