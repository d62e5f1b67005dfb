"""The peers: one file each, with the three functions that side.py describes."""
