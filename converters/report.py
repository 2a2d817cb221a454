"""What a conversion says of itself: what became of every key, and which version read what."""

from __future__ import annotations

import hashlib
import importlib.metadata
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Report:
    """What happened to every key and every parameter."""

    preset: str
    loaded: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)  # name -> reason
    newly_initialised: dict[str, str] = field(default_factory=dict)  # name -> reason
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        counts = {
            "loaded": len(self.loaded),
            "skipped": len(self.skipped),
            "newly_initialised": len(self.newly_initialised),
        }
        return {"counts": counts, **asdict(self)}

    def text(self) -> str:
        lines = [f"preset {self.preset}", f"loaded {len(self.loaded)}:"]
        lines += [f"  {name}" for name in self.loaded]
        for title, names in (
            ("skipped", self.skipped),
            ("newly initialised", self.newly_initialised),
        ):
            lines.append(f"{title} {len(names)}{':' if names else ''}")
            lines += [f"  {name}: {reason}" for name, reason in names.items()]
        return "\n".join(lines + [f"note: {note}" for note in self.notes])


def sha256_of(file: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def tool_version() -> str:
    """The version of this project, or that it is not installed."""
    try:
        return importlib.metadata.version("rtsam-jax")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
