"""From the registry to an answer over HTTP: inference engines and the Serve application."""
