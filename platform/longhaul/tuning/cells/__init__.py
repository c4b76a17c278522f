"""A sweep's cells: each a recipe, addressed by its content and by the code that computes it."""
