"""What is served: models loaded from the registry, kept, replaced while requests go on."""
