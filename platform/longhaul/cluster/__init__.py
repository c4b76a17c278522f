"""Clusters and jobs: finding or starting Ray, submitting, checking cluster.yaml."""
