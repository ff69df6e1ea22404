"""Runs on clusters: `run.py` leads one from here, `main.py` is the process on the cluster."""
