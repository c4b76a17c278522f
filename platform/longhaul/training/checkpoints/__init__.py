"""A run's state on its way to storage and back: saved beside training, resharded, resumed from."""
