"""Several detectors over one signal: the ensemble, its deadline, what it found, and tracks over time."""
