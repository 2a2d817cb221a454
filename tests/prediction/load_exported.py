"""Runs the Python of docs/export.md where this package cannot be imported.

`python load_exported.py DOCUMENT FOLDER`; FOLDER holds `exported` and, for each number of crops B,
`crops_B.npz`. Leaves `answers_B.npz` there, of both turns that the document takes.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

BLOCKED = {"rtsam_jax", "flax", "orbax", "optax", "transformers"}


class Hiding:
    """A finder that knows all but what is blocked."""

    def __init__(self, finder: Any):
        self.finder = finder

    def __getattr__(self, name: str) -> Any:
        return getattr(self.finder, name)

    def find_spec(self, name: str, *rest: Any) -> Any:
        return None if name.partition(".")[0] in BLOCKED else self.finder.find_spec(name, *rest)


def main(document: str, folder: str) -> None:
    code = re.findall(r"```python\n(.*?)```", Path(document).read_text(), re.DOTALL)
    definitions, usage = code
    os.chdir(folder)
    known: dict[str, Any] = {}
    exec(definitions, known)
    np = known["np"]
    for crops in sorted(Path().glob("crops_*.npz")):
        given = np.load(crops)
        known |= {"image": given["image"], "roi": given["roi"]}
        known |= dict(zip("ijk", given["click"].tolist(), strict=True))
        exec(usage, known)
        np.savez(
            f"answers_{len(given['image'])}.npz",
            first=known["first"]["probability"],
            mask=known["mask"],
            second=known["second"]["probability"],
            iou=known["second"]["iou"],
        )
    assert not BLOCKED & {name.partition(".")[0] for name in sys.modules}


if __name__ == "__main__":
    sys.meta_path[:] = map(Hiding, sys.meta_path)
    main(*sys.argv[1:])
