"""A grid's cells: addressed by their content, planned in the order of their cost, left out where they cannot win."""
