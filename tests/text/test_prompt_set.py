from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from rtsam_jax.config import ExperimentConfig
from rtsam_jax.data.selection import RunData, load_run_data
from rtsam_jax.errors import ConfigError
from rtsam_jax.prompts.text import mirror, optional_sentences, write_prompt
from rtsam_jax.text import prompt_set as module
from rtsam_jax.text.prompt_set import PromptSet, prompt_set, task_sentences, whiten
from tests.text.tiny_language_model import WIDTH, write_language_model
from tests.tiny import TASKS, tiny_config

pytest.importorskip("transformers", reason="needs the tokenizers of the extra `text`")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("prompts")
    write_language_model(root / "tiny")
    write_language_model(root / "short", max_tokens=24)
    return root


def config(place: Path, dataset: Path, **fields: object) -> ExperimentConfig:
    given = {
        "prompt__task": "text",
        "prompt__language_model": str(place / "tiny"),
        "prompt__feature_cache": str(place / "cache"),
        "prompt__pooling": "mean",  # then the language model is given whole texts
        "augment__flip_axes": (0,),
    }
    return tiny_config(dataset, **(given | fields))


class Made:
    """A prompt set and the texts behind its rows."""

    def __init__(self, cfg: ExperimentConfig, data: RunData, **options: object):
        seen: list[list[str]] = []
        real = module.text_features

        def recording(texts, *rest):
            seen.append(list(texts))
            return real(texts, *rest)

        module.text_features = recording
        try:
            self.prompts: PromptSet = prompt_set(cfg, data, **options)
        finally:
            module.text_features = real
        (self.texts,) = seen


@pytest.fixture(scope="module")
def data(tiny_dataset: Path) -> RunData:
    return load_run_data(tiny_config(tiny_dataset))


@pytest.fixture(scope="module")
def made(place: Path, tiny_dataset: Path, data: RunData) -> Made:
    probes = ("task", "text", "no-record")
    return Made(config(place, tiny_dataset), data, probes=probes)


def test_at_test_time_the_whole_text_is_said(made: Made, place: Path, data: RunData) -> None:
    prompt = config(place, data.dataset.root).prompt
    for case in data.held_out:
        sentence = task_sentences(data.dataset, prompt)[case.task]
        said = made.texts[made.prompts.own[case.id]]
        assert said == " ".join(write_prompt(sentence, case.record)) and said.startswith(sentence)
    assert "47-year-old" in made.texts[made.prompts.own["p3_orn"]]
    assert "right" in made.texts[made.prompts.own["p3_orn"]]


def test_the_table_has_a_row_per_distinct_text(made: Made) -> None:
    table = made.prompts.table
    assert table is not None and made.prompts.width == WIDTH
    assert table.features.shape == (len(made.texts), 1, WIDTH) and table.valid.all()
    assert len(set(made.texts)) == len(made.texts)


def test_training_says_the_task_the_whole_text_and_varied_ones(made: Made, data: RunData) -> None:
    assert list(made.prompts.training) == [case.id for case in data.train]
    for case in data.train:
        ids = made.prompts.training[case.id].ids
        assert len(ids) == 1 + 4
        bare, whole, *varied = (made.texts[i] for i in ids)
        assert whole == " ".join(write_prompt(bare, case.record))
        optional = optional_sentences(case.record)
        for text in varied:
            said = [sentence for sentence in optional if sentence in text]
            assert text.startswith(bare)
            assert len(text) == len(" ".join([bare, *said]))  # and nothing else
    every = [made.texts[i] for ids in made.prompts.training.values() for i in ids.ids]
    assert len(set(every)) > 2 * len(data.train)  # varied indeed


def test_mirrored_texts_swap_the_side(made: Made) -> None:
    for told in made.prompts.training.values():
        assert told.mirrored is not None
        for own, other in zip(told.ids, told.mirrored, strict=True):
            assert mirror(made.texts[own]) == made.texts[other]
    whole = made.prompts.training["p0_orn"]
    assert "left" in made.texts[whole.ids[1]] and "right" in made.texts[whole.mirrored[1]]


def test_without_left_right_flips_nothing_is_mirrored(
    place: Path, tiny_dataset: Path, data: RunData
) -> None:
    found = Made(config(place, tiny_dataset, augment__flip_axes=(1,)), data)
    assert all(told.mirrored is None for told in found.prompts.training.values())


def test_the_same_seed_says_the_same(
    made: Made, place: Path, tiny_dataset: Path, data: RunData
) -> None:
    probes = ("task", "text", "no-record")
    again = Made(config(place, tiny_dataset), data, probes=probes)
    assert again.texts == made.texts and again.prompts.probes == made.prompts.probes
    other = Made(config(place, tiny_dataset, seed=1), data, probes=probes)
    assert other.texts != made.texts


def test_probes_say_something_else(made: Made, data: RunData) -> None:
    own, probes = made.prompts.own, made.prompts.probes
    assert list(probes) == ["task", "text", "no-record"]
    for case in data.held_out:
        assert probes["task"][case.id] != own[case.id]
        assert probes["text"][case.id] in set(own.values()) - {own[case.id]}
        said = made.texts[own[case.id]]
        assert said.startswith(made.texts[probes["no-record"][case.id]])
    record = made.texts[own["p3_orn"]].split(". ", 1)[1]
    assert made.texts[probes["task"]["p3_orn"]].endswith(record)  # another task, the same record


def test_a_probe_that_changes_nothing_is_an_error(
    place: Path, tiny_dataset: Path, data: RunData
) -> None:
    cfg = config(place, tiny_dataset)
    with pytest.raises(ConfigError, match="'record'.*no other to take; leave out --probe record"):
        prompt_set(cfg, data, probes=("record",))  # one case per task is held out
    bare = tuple(dataclasses.replace(case, record={}) for case in data.held_out)
    with pytest.raises(ConfigError, match="no case has a record"):
        prompt_set(cfg, dataclasses.replace(data, held_out=bare), probes=("no-record",))
    with pytest.raises(ConfigError, match="'no-record'.*config.prompt.task is 'embedding'"):
        prompt_set(tiny_config(tiny_dataset), data, probes=("no-record",))
    with pytest.raises(ConfigError, match="'task'.*config.prompt.task is 'none'"):
        prompt_set(tiny_config(tiny_dataset, prompt__task="none"), data, probes=("task",))


def test_an_empty_record_says_the_task(made: Made, data: RunData) -> None:
    case = next(case for case in data.held_out if not case.record)
    assert made.prompts.own[case.id] == made.prompts.probes["no-record"][case.id]


def test_constants_whiten_the_training_texts(made: Made) -> None:
    constants = made.prompts.constants()
    rows = np.unique(np.concatenate([told.ids for told in made.prompts.training.values()]))
    x = made.prompts.table.features[rows, 0] - constants["prompt_encoder.text_adapter.centre"]
    x = x @ constants["prompt_encoder.text_adapter.whitening"]
    np.testing.assert_allclose(x.mean(0), 0, atol=1e-3)
    assert abs((x**2).mean() - 1) < 1e-3


def test_whitening_brings_out_what_hardly_varies() -> None:
    """Two texts that differ in a word, beside one that differs in everything."""
    draw = np.random.default_rng(0)
    base, word, other = draw.standard_normal((3, 24))
    features = np.stack([base + 0.1 * word, base - 0.1 * word, base + 2 * other])
    centre, whitening = whiten(features)

    def apart(x: np.ndarray) -> float:
        return float(np.linalg.norm(x[0] - x[1]) / np.linalg.norm(x[0] - x[2]))

    assert apart(features) < 0.15
    assert apart((features - centre) @ whitening) > 0.4
    unseen = draw.standard_normal(24)
    unseen -= np.linalg.lstsq((features - centre).T, unseen, rcond=None)[0] @ (features - centre)
    np.testing.assert_allclose(unseen @ whitening, 0, atol=1e-4)  # no such direction was seen


def test_one_text_for_all_divides_by_nothing(place: Path, tiny_dataset: Path) -> None:
    cfg = config(place, tiny_dataset, data__tasks=("orn",))
    data = load_run_data(cfg)
    bare = [
        tuple(dataclasses.replace(case, record={}) for case in cases)
        for cases in (data.train, data.held_out)
    ]
    found = prompt_set(cfg, dataclasses.replace(data, train=bare[0], held_out=bare[1]))
    constants = found.constants()
    assert not constants["prompt_encoder.text_adapter.whitening"].any()
    assert np.isfinite(constants["prompt_encoder.text_adapter.centre"]).all()


def test_sentences_are_read_one_by_one(
    made: Made, place: Path, tiny_dataset: Path, data: RunData
) -> None:
    """A row holds a feature per sentence, the same wherever the sentence stands."""
    found = Made(config(place, tiny_dataset, prompt__pooling="sentences"), data)
    assert len(set(found.texts)) == len(found.texts) < len(made.texts)
    assert all(text.count(". ") == 0 for text in found.texts)
    table, seen = found.prompts.table, {}
    for case in data.train:
        bare, whole, *_ = found.prompts.training[case.id].ids
        count = 1 + len(optional_sentences(case.record))
        assert table.valid[whole].sum() == count and table.valid[bare].sum() == 1
        np.testing.assert_array_equal(table.features[whole, 0], table.features[bare, 0])
        for row, sentence in enumerate(optional_sentences(case.record), start=1):
            feature = seen.setdefault(sentence, table.features[whole, row])
            np.testing.assert_array_equal(table.features[whole, row], feature)
    assert np.isfinite(list(found.prompts.constants().values())[0]).all()


def test_tokens_are_padded_and_marked(place: Path, tiny_dataset: Path, data: RunData) -> None:
    table = Made(config(place, tiny_dataset, prompt__pooling="tokens"), data).prompts.table
    assert table.features.shape[:2] == table.valid.shape and table.valid.shape[1] > 10
    assert table.valid[:, 0].all() and not table.valid.all()
    assert not table.features[~table.valid].any()


def test_what_the_model_cannot_read_is_told_by_case(
    place: Path, tiny_dataset: Path, data: RunData, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = config(place, tiny_dataset, prompt__language_model=str(place / "short"))
    prompt_set(cfg, data)
    out = capsys.readouterr().out
    assert "warning: texts longer than the language model reads are cut" in out
    assert "p3_orn " in out and "47-year-old" not in out


def test_words_of_ones_own(place: Path, tiny_dataset: Path, data: RunData) -> None:
    cfg = config(place, tiny_dataset, prompt__task_texts=("ce=the swollen white matter",))
    made = Made(cfg, data)
    assert any("the swollen white matter" in text for text in made.texts)
    cfg = config(place, tiny_dataset, prompt__task_texts=("dent=a dent",))
    with pytest.raises(ConfigError, match="task_texts names the task 'dent'"):
        prompt_set(cfg, data)


def test_task_embeddings_need_no_language_model(tiny_dataset: Path, data: RunData) -> None:
    found = prompt_set(tiny_config(tiny_dataset), data, probes=("task",))
    assert found.table is None and found.width == 0 and found.constants() == {}
    for case in data.held_out:
        assert data.tasks[found.own[case.id]] == case.task
        assert found.probes["task"][case.id] != found.own[case.id]
    for case in data.train:
        told = found.training[case.id]
        assert {TASKS[i] for i in told.ids} == {case.task}
        assert np.array_equal(told.ids, told.mirrored)


def test_a_task_that_names_a_side_is_never_mirrored_without_text(
    place: Path, tiny_dataset: Path, data: RunData
) -> None:
    tasks = tuple(
        dataclasses.replace(task, title="left parotid gland") if task.name == "orn" else task
        for task in data.dataset.tasks
    )
    sided = dataclasses.replace(data, dataset=dataclasses.replace(data.dataset, tasks=tasks))
    words = {"prompt__task_texts": ("orn=the left parotid gland",)}
    for cfg in (
        tiny_config(tiny_dataset, **words),
        tiny_config(tiny_dataset, prompt__task="none", **words),
    ):
        found = prompt_set(cfg, sided)
        for case in sided.train:
            assert (found.training[case.id].mirrored is None) == (case.task == "orn")
    found = Made(config(place, tiny_dataset, **words), sided)
    told = found.prompts.training["p0_orn"]
    assert "right parotid" in found.texts[told.mirrored[0]]
