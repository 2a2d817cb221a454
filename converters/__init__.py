"""Weights of other frameworks to and from this one; the only place that imports PyTorch."""
