"""The same four programs in RussellGrad and in its peers: `python -m benchmarks.peers`. A file for each library."""
