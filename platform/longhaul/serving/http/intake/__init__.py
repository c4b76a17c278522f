"""From a request's body to a signal or a tile, within limits."""
