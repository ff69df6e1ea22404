"""One script a claim: ours and the peer in the same run, the ratio last. See `python -m benchmarks`."""
