"""Bad input: each kind has its own error, which says whose it is and what to do about it."""

from __future__ import annotations

from pathlib import Path

import pytest

from rtsam_jax import errors
from rtsam_jax.data.cases import Case, Dataset, load_dataset
from rtsam_jax.data.nifti import read_label, read_volume
from rtsam_jax.data.preprocess import PreprocessSpec, label_to_grid, preprocess
from rtsam_jax.data.splits import load_or_make_splits
from tests.data.bad_inputs import CORPUS, BadInput, make_dataset


def load(root: Path) -> Dataset:
    dataset = load_dataset(root)
    load_or_make_splits(dataset, root / "splits.json", seed=0)
    return dataset


def use_case(dataset: Dataset, case: Case, spec: PreprocessSpec) -> None:
    """What every command does with a case."""
    image = read_volume(case.image)
    dose = None if case.dose is None else read_volume(case.dose, what="dose")
    modality = dataset.task(case.task).modality
    prescription = case.record.get("prescription_gy")
    assert prescription is None or isinstance(prescription, int | float)
    done = preprocess(image, dose, modality, spec, name=case.id, prescription_gy=prescription)
    if case.label is not None:
        label_to_grid(read_label(case.label, case.label_value), done.grid, name=case.id)


def use(root: Path, spec: PreprocessSpec) -> None:
    """What every command does with a dataset."""
    dataset = load(root)
    for case in dataset.cases:
        use_case(dataset, case, spec)


def spec_of(bad: BadInput) -> PreprocessSpec:
    return PreprocessSpec(spacing_mm=1.0, tau=0.8, **bad.dose)


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    make_dataset(tmp_path)
    return tmp_path


@pytest.mark.parametrize("threshold", ["dmax", "d2", "prescription", "absolute"])
def test_the_sound_dataset_passes(sound: Path, threshold: str) -> None:
    use(sound, PreprocessSpec(spacing_mm=1.0, tau=0.8, threshold=threshold, gy=45.0))
    assert (sound / "splits.json").is_file()


def test_the_corpus_is_distinct() -> None:
    assert len({bad.sentence for bad in CORPUS.values()}) > 50
    assert {bad.strikes for bad in CORPUS.values()} == {"dataset", "case", "splits"}


@pytest.mark.parametrize("name", CORPUS)
def test_bad_input(sound: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    bad = CORPUS[name]
    if bad.needs is not None and not bad.needs.exists():
        pytest.skip(f"needs {bad.needs}, which this system lacks")
    bad.damage(sound)
    with pytest.raises(errors.RTSamError) as caught:
        use(sound, spec_of(bad))
    assert type(caught.value) is bad.error
    with pytest.raises(SystemExit) as left:
        errors.run_command(lambda: use(sound, spec_of(bad)))
    assert left.value.code == bad.exit_status
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error[{bad.code}]: ")
    assert bad.says(line.removeprefix(f"error[{bad.code}]: "), sound), line


@pytest.mark.parametrize("name", [name for name, bad in CORPUS.items() if bad.strikes == "case"])
def test_one_bad_case_spoils_no_other(sound: Path, name: str) -> None:
    bad = CORPUS[name]
    if bad.needs is not None and not bad.needs.exists():
        pytest.skip(f"needs {bad.needs}, which this system lacks")
    bad.damage(sound)
    dataset = load(sound)
    alpha, beta = dataset.cases
    use_case(dataset, alpha, spec_of(bad))
    with pytest.raises(bad.error):
        use_case(dataset, beta, spec_of(bad))
