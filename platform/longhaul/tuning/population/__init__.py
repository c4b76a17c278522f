"""Population based training: members, their rounds, and who went on from whom."""
