"""JSON files, read strictly and written whole."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NoReturn

from etils import epath

from rtsam_jax.data.whole_file import write_whole
from rtsam_jax.errors import DatasetSchemaError


def read_json(path: Path) -> Any:
    """Parses strict JSON; what `strict_json` refuses is a `DatasetSchemaError`."""
    try:
        return strict_json(path)
    except ValueError as cause:
        raise DatasetSchemaError(f"{path} is not valid JSON ({cause}); mend the file.") from cause


def strict_json(path: Path) -> Any:
    """Parses a JSON file.

    Raises:
        OSError: the system refuses it.
        ValueError: undecodable text, no JSON, a field twice in one object, NaN, too deep.
    """

    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise ValueError(f"it has the field {twice!r} twice in one object")
        return result

    def no_constant(text: str) -> NoReturn:
        raise ValueError(f"it contains {text} where a number must be")

    text = path.read_text(encoding="utf-8")
    try:
        return json.loads(text, object_pairs_hook=no_duplicates, parse_constant=no_constant)
    except RecursionError as cause:
        raise ValueError("it is nested too deeply") from cause


def finite(document: Any) -> Any:
    """The same document with null for every number that is not finite, as strict JSON needs it."""
    if isinstance(document, dict):
        return {key: finite(item) for key, item in document.items()}
    if isinstance(document, list | tuple):
        return [finite(item) for item in document]
    return None if isinstance(document, float) and not math.isfinite(document) else document


def write_json(path: Path, document: Any) -> None:
    """Writes JSON whole or not at all: see `write_whole`."""
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    write_whole(epath.Path(path), text + "\n")
