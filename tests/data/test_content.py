"""Content hashes: right after any change, and from memory where there was none."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from etils import epath

from rtsam_jax.data import content
from rtsam_jax.data.content import MEMO, ContentHashes
from rtsam_jax.errors import MissingFile, UnreadableFile


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were read to be hashed; nothing counts as too young to remember."""
    seen: list[str] = []
    real = hashlib.file_digest

    def counted(file, name):
        seen.append(Path(file.name).name)
        return real(file, name)

    monkeypatch.setattr(content.hashlib, "file_digest", counted)
    monkeypatch.setattr(content, "_SETTLED_S", -1.0)
    return seen


def digests(folder: Path, *names: str) -> list:
    found = ContentHashes(epath.Path(folder / "cache")).of([folder / name for name in names])
    return [getattr(found[folder / name], "digest", found[folder / name]) for name in names]


def test_digests_are_sha256_and_remembered(tmp_path: Path, reads: list[str]) -> None:
    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / "b").write_bytes(b"two")
    expected = [hashlib.sha256(text).hexdigest() for text in (b"one", b"two")]
    assert digests(tmp_path, "a", "b") == expected and sorted(reads) == ["a", "b"]
    assert digests(tmp_path, "b", "a", "a") == [expected[1], expected[0], expected[0]]
    assert len(reads) == 2


@pytest.mark.parametrize("way", ["in place", "deleted and made anew", "renamed over it"])
def test_same_size_and_date_do_not_hide_a_change(
    tmp_path: Path, reads: list[str], way: str
) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    os.utime(path, ns=(10**18, 10**18))
    (before,) = digests(tmp_path, "a")
    if way == "renamed over it":
        (tmp_path / "new").write_bytes(b"two")
        (tmp_path / "new").replace(path)
    else:
        if way == "deleted and made anew":
            path.unlink()
        path.write_bytes(b"two")
    os.utime(path, ns=(10**18, 10**18))
    assert digests(tmp_path, "a") == [hashlib.sha256(b"two").hexdigest()] != [before]


def test_a_file_that_has_just_changed_is_not_remembered(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"one")
    digests(tmp_path, "a")
    assert not (tmp_path / "cache" / MEMO).exists()


@pytest.mark.parametrize("memory", [b"{", b"[]", b'{"x": 3}', b"\xff\xfe"])
def test_a_damaged_memory_is_forgotten(tmp_path: Path, reads: list[str], memory: bytes) -> None:
    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / MEMO).write_bytes(memory)
    assert digests(tmp_path, "a") == [hashlib.sha256(b"one").hexdigest()]
    digests(tmp_path, "a")
    assert reads == ["a"]


def test_what_cannot_be_read_is_told_and_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / "folder").mkdir()
    gone, folder, sound = digests(tmp_path, "gone", "folder", "a")
    assert isinstance(gone, MissingFile) and str(tmp_path / "gone") in str(gone)
    assert isinstance(folder, UnreadableFile) and "Is a directory" in str(folder)
    assert sound == hashlib.sha256(b"one").hexdigest()
