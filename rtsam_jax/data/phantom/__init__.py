"""The embedded default data: deterministic head phantoms with planted radiation injuries.

`build(root)` writes a dataset folder; `python -m rtsam_jax.data.phantom OUT` does the same.
See docs/phantom.md.
"""

from rtsam_jax.data.phantom.dataset import PhantomCase, build, make_case

__all__ = ["PhantomCase", "build", "make_case"]
