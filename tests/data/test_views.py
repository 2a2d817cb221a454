"""Fixed views: who is shown when, what a view depends on, and its record on disk."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import grain
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import limited_data, rt_injury
from rtsam_jax.config import AugmentConfig, ExperimentConfig
from rtsam_jax.data import views as module
from rtsam_jax.data.packing import unpack
from rtsam_jax.data.pipeline import PromptIds, in_batches
from rtsam_jax.data.sample import View
from rtsam_jax.data.shards import make_folder, write_shard
from rtsam_jax.data.views import (
    ENCODED,
    FixedViews,
    StoredViews,
    Turn,
    ViewSettings,
    encode,
    find_views,
    view_keys,
    views_root,
)
from rtsam_jax.errors import CacheDamaged, ConfigError, NotWritable
from tests.tiny import tiny_config

grain.config.update("py_debug_mode", False)

SIDED = PromptIds(np.array([0, 4, 5]), np.array([0, 6, 7]))
PLAIN = PromptIds(np.array([1, 8, 9]), None)


def fixed(cases: int = 3, per_case: int = 4, seed: int = 0, **more: Any) -> FixedViews:
    fields = {"jitter": 5, "margin": 2, "record_dropout": 0.3, **more}
    names = [f"case {i}" for i in range(cases)]
    prompts = [(SIDED, PLAIN)[i % 2] for i in range(cases)]
    return FixedViews(names, prompts, per_case, seed, **fields)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 7), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_an_epoch_shows_every_case_once_and_k_epochs_every_view(
    cases: int, per_case: int, seed: int
) -> None:
    turns = fixed(cases, per_case, seed).turns()
    epochs = [[turns[at] for at in range(e * cases, (e + 1) * cases)] for e in range(2 * per_case)]
    for epoch in epochs:
        assert sorted(turn.case_id for turn in epoch) == list(range(cases))
    for some in (epochs[:per_case], epochs[per_case:]):
        shown = Counter((turn.case_id, turn.number) for epoch in some for turn in epoch)
        assert len(shown) == cases * per_case and set(shown.values()) == {1}


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_balanced_tasks_use_views_equally_often_too(per_case: int, seed: int) -> None:
    turns = fixed(5, per_case, seed).turns(tasks=[0, 1, 0, 0, 0])
    drawn = [turns[at] for at in range(24)]
    assert sum(turn.case_id == 1 for turn in drawn) == 12
    for case in range(5):
        shown = Counter(turn.number for turn in drawn if turn.case_id == case)
        counts = [shown[number] for number in range(per_case)]
        assert max(counts) - min(counts) <= 1


def test_epochs_are_shuffled_anew() -> None:
    turns = fixed(8, 2).turns()
    orders = {tuple(turns[8 * e + at].case_id for at in range(8)) for e in range(4)}
    assert len(orders) == 4


def drawn(views: FixedViews, case: int, number: int) -> tuple:
    plan = views.plan(Turn(case, number))
    return plan.part, plan.shift.tolist(), plan.view


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 9999))
def test_a_view_depends_on_seed_case_and_number_alone(seed: int, number: int) -> None:
    few = fixed(3, 1, seed)
    more = dataclasses.replace(few, names=["new", *few.names], prompts=[PLAIN, *few.prompts])
    assert drawn(few, 2, number) == drawn(dataclasses.replace(more, per_case=99), 3, number)
    others = (few, 2, number + 1), (few, 1, number), (fixed(3, 1, seed ^ 1), 2, number)
    assert drawn(few, 2, number) not in [drawn(*other) for other in others]
    plan = few.plan(Turn(2, number))
    assert 0 <= plan.view < 2**31 and np.all(np.abs(plan.shift + 2) <= 5)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 9999), st.booleans())
def test_a_stored_position_stands_for_the_row_of_any_run(number: int, sided: bool) -> None:
    views = fixed(2)
    turn = Turn(0 if sided else 1, number)
    (row, mirrored), told = views.plan(turn).told, views.prompts[turn.case_id]
    at, mirrored_at = views.by_position().plan(turn).told
    rows = told.ids if told.mirrored is None else np.concatenate([told.ids, told.mirrored])
    assert rows[at] == row
    assert (mirrored_at == mirrored == -1) if not sided else rows[mirrored_at] == mirrored


def random_view(seed: int, rows: int, *, box: bool = True) -> View:
    rng = np.random.default_rng(seed)
    side = int(rng.integers(3, 9))
    return View(
        embedding=rng.normal(size=(rows, 2, 2, 2, 6)).astype(np.float32),
        label=rng.integers(0, 2, (rows, side, side, side), np.uint8),
        roi=rng.integers(0, 2, (rows, side, side, side), np.uint8),
        box=rng.normal(size=(rows, 2, 3)).astype(np.float32) if box else None,
        box_valid=rng.integers(0, 2, rows).astype(bool) if box else None,
        text_id=rng.integers(0, 3, rows).astype(np.int32),
        case_id=np.zeros(rows, np.int32),
        weight=np.ones(rows, np.float32),
    )


def stored(folder: epath.Path, view: View, dtype: str, prompts: PromptIds = PLAIN) -> StoredViews:
    """Rows of a batch as the views of one case, in one shard."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = range(len(view.weight))
    records = [encode(view, row, dtype=dtype, seed=row) for row in rows]
    keyed = [(content, {"key": str(row)}) for row, content in enumerate(records)]
    write_shard(folder, keyed, ENCODED)
    found = find_views(folder)
    return StoredViews([[found[str(row)] for row in rows]], [prompts], Path(folder))


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 4), st.booleans(), st.booleans())
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, seed: int, rows: int, box: bool, short: bool
) -> None:
    view = random_view(seed, rows, box=box)
    folder = epath.Path(tmp_path_factory.mktemp("views"))
    views = stored(folder, view, "bfloat16" if short else "float32")
    back = views.read([Turn(0, number, weight=number % 2) for number in range(rows)])
    expected = view._replace(
        embedding=view.embedding.astype(jnp.bfloat16) if short else view.embedding,
        text_id=PLAIN.ids[view.text_id],
        weight=np.arange(rows) % 2,
    )
    for name in View._fields:
        found, wanted = getattr(back, name), getattr(expected, name)
        np.testing.assert_array_equal(found, wanted, err_msg=name)
        assert found is None or name in ("text_id", "weight") or found.dtype == wanted.dtype


def test_an_embedding_is_seen_in_place() -> None:
    content = encode(random_view(0, 1), 0, dtype="bfloat16", seed=0)
    embedding, about = unpack(content)
    assert np.shares_memory(embedding, np.frombuffer(content, np.uint8))
    assert about["seed"] == 0 and embedding.nbytes == 2 * 2**3 * 6


SETTINGS = ViewSettings("digest", "float32", 0, 3, 0.1, True, 0, AugmentConfig())


def all_keys(views: FixedViews, held: ViewSettings = SETTINGS, scan: str = "scan") -> list[str]:
    scans = [(scan, 0)] * len(views.names)
    return [key for of_case in view_keys(held, views, scans) for key in of_case]


def test_more_views_more_cases_and_other_words_keep_the_keys() -> None:
    few = fixed(2, 2)
    keys = all_keys(few)
    assert len(set(keys)) == 4
    assert set(keys) < set(all_keys(dataclasses.replace(few, per_case=3)))
    assert set(keys) < set(all_keys(fixed(3, 2)))
    reworded = [told._replace(ids=told.ids + 10) for told in few.prompts]
    assert keys == all_keys(dataclasses.replace(few, prompts=reworded))


def test_whatever_changes_a_view_changes_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    views = fixed(2, 2)
    changes = {
        "encoder": "other",
        "dtype": "bfloat16",
        "seed": 1,
        "jitter": 4,
        "record_dropout": 0.2,
        "box": False,
        "box_jitter": 1,
        "augment": AugmentConfig(noise=0.5),
    }
    assert set(changes) == {field.name for field in dataclasses.fields(ViewSettings)}
    kinds = [all_keys(views)]
    kinds += [all_keys(views, dataclasses.replace(SETTINGS, **{k: v})) for k, v in changes.items()]
    kinds.append(all_keys(views, scan="other files"))
    kinds.append(all_keys(dataclasses.replace(views, prompts=[PLAIN, SIDED])))
    longer = [PromptIds(np.arange(4), None if t.mirrored is None else t.ids) for t in views.prompts]
    kinds.append(all_keys(dataclasses.replace(views, prompts=longer)))
    monkeypatch.setattr(module, "FORMAT", module.FORMAT + 1)
    kinds.append(all_keys(views))
    every = [key for keys in kinds for key in keys]
    assert len(set(every)) == len(every) == 4 * (len(changes) + 5)


def test_a_damaged_record_names_its_file_and_the_remedy(tmp_path: Path) -> None:
    folder = epath.Path(tmp_path)
    views = stored(folder, random_view(0, 2), "float32")
    (shard,) = tmp_path.glob("*.array_record")
    content = bytearray(shard.read_bytes())
    content[len(content) // 100] ^= 4
    shard.write_bytes(content)
    said = f"The encoded views in {shard} cannot be read .*delete that file, and they are encoded"
    with pytest.raises(CacheDamaged, match=said):
        views.read([Turn(0, 0), Turn(0, 1)])
    shard.unlink()
    assert find_views(folder, mend=True) == {} and list(tmp_path.iterdir()) == []


def test_a_refusal_to_write_names_the_folder_and_its_option(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = "the encoded views in .*/file/x cannot be written .*--config.views.folder=FOLDER"
    with pytest.raises(NotWritable, match=said):
        make_folder(epath.Path(tmp_path / "file" / "x"), "{}", ENCODED)


def test_batches_of_turns_say_which_rows_count() -> None:
    batches = in_batches(fixed(3, 2).turns(), list, batch_size=2, rows=3, samples=3)
    assert [[turn.weight for turn in batches[at]] for at in (0, 1)] == [[1, 1, 0], [1, 0, 0]]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"views__per_case": -1}, r"config.views.per_case is -1, .* from 0 to 10000"),
        ({"views__per_case": 10_001}, r"config.views.per_case is 10001, .* from 0 to 10000"),
        ({"model__freeze_encoder": False}, r"config.views.per_case is 2, .* encoder is trained"),
        ({"views__per_case": 0}, r"config.views.cache is 'float32', .* 'none' where"),
        ({"views__cache": "float16"}, r"config.views.cache is 'float16', .* one of 'none'"),
        ({"seed": -1}, r"config.seed is -1"),
    ],
)
def test_settings_that_contradict_each_other(fields: dict[str, Any], said: str) -> None:
    sound = {"model__freeze_encoder": True, "views__per_case": 2, "views__cache": "float32"}
    tiny_config(**sound)
    with pytest.raises(ConfigError, match=said):
        tiny_config(**{**sound, **fields})


def test_where_views_are_kept() -> None:
    cfg = tiny_config("data")
    assert views_root(cfg) == epath.Path("data/prepared/views")
    cfg.views.folder = "elsewhere"
    assert views_root(cfg) == epath.Path("elsewhere")


def test_the_config_for_limited_data_is_that_of_rt_injury_on_views() -> None:
    def fields(cfg: ExperimentConfig) -> dict[str, Any]:
        return json.loads(cfg.to_json())

    limited, full = fields(limited_data.get_config()), fields(rt_injury.get_config())
    assert limited.pop("views") == {"per_case": 16, "cache": "bfloat16", "folder": ""}
    assert limited.pop("name") == "limited_data"
    del full["views"], full["name"]
    assert limited == full
