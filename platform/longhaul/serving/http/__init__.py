"""The HTTP interface: routes, bodies, problems, tokens. Nothing here knows Ray."""
