"""Work for one engine: the most urgent first, in batches, by times that are learned."""
