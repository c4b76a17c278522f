"""Plain torch modules by name."""
