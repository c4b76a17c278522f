"""In which order a grid's cells are trained, and which of them cannot win."""
