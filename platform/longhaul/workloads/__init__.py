"""The problems that Longhaul trains: model, loss, metrics and export signature, one file each."""
