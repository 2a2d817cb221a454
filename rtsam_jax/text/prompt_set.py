"""Which prompt each case of a run is given: texts and their table, or the task's own tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rtsam_jax.config import ExperimentConfig, PromptConfig
from rtsam_jax.data.cases import Case, Dataset
from rtsam_jax.data.pipeline import PromptIds
from rtsam_jax.data.selection import RunData
from rtsam_jax.errors import ConfigError
from rtsam_jax.models.text_adapter import TextTable
from rtsam_jax.prompts.text import (
    Text,
    mirror,
    mirror_prompt,
    parse_task_texts,
    task_sentence,
    vary_prompt,
    write_prompt,
)
from rtsam_jax.text.features import cache_folder, text_features
from rtsam_jax.text.language_model import TextFeature, describe

_NAMED = 5  # cases that a note names
_FLOOR = 0.01  # share of the largest variance; see `whiten`

# What a probe tells the model instead of the case's own prompt, and what its rows are called.
PROBES = {
    "task": "task shuffled",  # another task, the record kept
    "text": "text shuffled",  # another case's text, task and all
    "record": "record shuffled",  # another record of the same task
    "no-record": "no record",  # the task alone
}


@dataclass(frozen=True)
class PromptSet:
    """The prompts of a run.

    Attributes:
        table: features of its texts, on the host; None where tasks have learned tokens or none.
        own: by case id, the prompt at test time.
        training: by case id, what training chooses from.
        probes: by probe (`PROBES`) and case id, what it says instead.
        language_model: digest of the weights that made the table, or None.
    """

    table: TextTable | None
    own: Mapping[str, int]
    training: Mapping[str, PromptIds]
    probes: Mapping[str, Mapping[str, int]]
    language_model: str | None = None

    @property
    def width(self) -> int:
        """Channels of a text feature; 0 without texts."""
        return 0 if self.table is None else self.table.features.shape[-1]

    def constants(self) -> dict[str, np.ndarray]:
        """The constants of `TextAdapter` by dotted name, of the training texts, not mirrored."""
        if self.table is None:
            return {}
        rows = np.unique(np.concatenate([told.ids for told in self.training.values()]))
        features = np.asarray(self.table.features)[rows][np.asarray(self.table.valid)[rows]]
        centre, whitening = whiten(features)
        place = "prompt_encoder.text_adapter"
        return {f"{place}.centre": centre, f"{place}.whitening": whitening}


def whiten(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What makes features of unit mean square, with their variances nearer to each other.

    A direction of variance v is divided by sqrt(v + _FLOOR * the largest v): all that vary much
    come out alike, those that hardly vary are not blown up without bound, and those that do not
    vary at all are left out, so that an unseen text is told by what the seen ones differ in.

    Args:
        features: `[n, C]`.

    Returns:
        Centre `[C]` and whitening `[C, C]`, for `(features - centre) @ whitening`; float32.
    """
    centre = features.mean(0, dtype=np.float64)
    variances, directions = np.linalg.eigh(np.cov(features - centre, rowvar=False, bias=True))
    largest = variances[-1]
    if largest < 1e-12:  # one text for all: nothing to tell apart
        return centre.astype(np.float32), np.zeros((len(centre),) * 2, np.float32)
    seen = variances > 1e-6 * largest
    scale = np.where(seen, 1 / np.sqrt(np.maximum(variances, 0) + _FLOOR * largest), 0)
    mean_square = (variances * scale**2).sum() / len(centre)
    whitening = (directions * (scale / np.sqrt(mean_square))) @ directions.T
    return centre.astype(np.float32), whitening.astype(np.float32)


class _Texts:
    """Distinct texts in the order they are met."""

    def __init__(self) -> None:
        self.rows: dict[Text, int] = {}

    def __call__(self, text: Text) -> int:
        return self.rows.setdefault(text, len(self.rows))


def task_sentences(dataset: Dataset, prompt: PromptConfig) -> dict[str, str]:
    """The sentence that names a task, by task, in the config's words where it has any.

    Raises:
        ConfigError: `prompt.task_texts` is malformed, or names no task of the dataset.
    """
    own = parse_task_texts(prompt.task_texts)
    tasks = {task.name: task for task in dataset.tasks}
    if unknown := sorted(own.keys() - tasks.keys()):
        raise ConfigError(
            f"config.prompt.task_texts names the task {unknown[0]!r}, which {dataset.root} does "
            f"not have; its tasks are {', '.join(tasks)}."
        )
    return {
        name: task_sentence(name, task.title, task.modality, own) for name, task in tasks.items()
    }


def require_language_model(cfg: ExperimentConfig) -> None:
    """Raises what a missing or damaged language model's folder raises, if the config needs one."""
    if cfg.prompt.task == "text":
        describe(Path(cfg.prompt.language_model))


def prompt_set(
    cfg: ExperimentConfig, data: RunData, *, train: bool = True, probes: Sequence[str] = ()
) -> PromptSet:
    """The prompts of a run's cases, with the features of their texts where it uses texts.

    Args:
        train: also those of the training cases.
        probes: names of `PROBES` to prepare for the held-out cases.

    Raises:
        ConfigError: a task text is malformed or names no task; a probe cannot change anything.
        RTSamError: of the language model; see `rtsam_jax.text.language_model`.
    """
    sentences = task_sentences(data.dataset, cfg.prompt)
    training = data.train if train else ()
    if cfg.prompt.task != "text":
        return _by_task(cfg, data, training, sentences, probes)
    texts = _Texts()

    def say(case: Case, task: str | None = None) -> int:
        return texts(write_prompt(sentences[task or case.task], case.record))

    own = {case.id: say(case) for case in data.held_out}
    told = _told(cfg, training, sentences, texts)
    wrong = {
        probe: _probe(probe, cfg.seed, data, own, say) for probe in probes if probe != "no-record"
    }
    if "no-record" in probes:
        wrong["no-record"] = {case.id: texts((sentences[case.task],)) for case in data.held_out}
        if wrong["no-record"] == own:
            raise _pointless("no-record", data, "no case has a record")
    features = encode_texts(list(texts.rows), cfg.prompt)
    _warn_of_losses(features, own, told)
    digest = describe(Path(cfg.prompt.language_model)).digest
    return PromptSet(make_table(features), own, told, wrong, digest)


def crop_prompts(cfg: ExperimentConfig, data: RunData) -> Mapping[str, PromptIds]:
    """By training case, prompts as many and as mirrorable as `prompt_set`'s, without features.

    For whoever draws the same crops and is told nothing; it needs no language model.

    Raises:
        ConfigError: a task text is malformed or names no task.
    """
    sentences = task_sentences(data.dataset, cfg.prompt)
    if cfg.prompt.task != "text":
        return _by_task(cfg, data, data.train, sentences, ()).training
    return _told(cfg, data.train, sentences, _Texts())


def _told(
    cfg: ExperimentConfig, training: Sequence[Case], sentences: Mapping[str, str], texts: _Texts
) -> dict[str, PromptIds]:
    return {
        case.id: _wordings(cfg, case, at, sentences[case.task], texts)
        for at, case in enumerate(training)
    }


def encode_texts(texts: Sequence[Text], prompt: PromptConfig) -> list[TextFeature]:
    """A feature per text, or in the pooling "sentences" one per sentence of it.

    Raises:
        RTSamError: of the language model; see `rtsam_jax.text.language_model`.
    """
    model, cache = Path(prompt.language_model), cache_folder(prompt.feature_cache)
    if prompt.pooling != "sentences":
        return text_features([" ".join(text) for text in texts], model, prompt.pooling, cache)
    distinct = list(dict.fromkeys(sentence for text in texts for sentence in text))
    of = dict(zip(distinct, text_features(distinct, model, "mean", cache), strict=True))
    return [
        TextFeature(
            np.concatenate([of[sentence].feature for sentence in text]),
            sum(of[sentence].lost for sentence in text),
        )
        for text in texts
    ]


def _by_task(
    cfg: ExperimentConfig,
    data: RunData,
    training: Sequence[Case],
    sentences: Mapping[str, str],
    probes: Sequence[str],
) -> PromptSet:
    """Task indices as prompts. A task that names a side has no mirror image among them."""
    index = {name: i for i, name in enumerate(data.tasks)}
    told = {}
    for case in training:
        ids = np.full(2, index[case.task], np.int32)
        sided = mirror(sentences[case.task]) != sentences[case.task]
        told[case.id] = PromptIds(ids, None if sided else ids)
    own = {case.id: index[case.task] for case in data.held_out}
    wrong = {}
    for probe in probes:
        if probe in ("record", "no-record") or cfg.prompt.task == "none":
            raise _pointless(probe, data, f"config.prompt.task is {cfg.prompt.task!r}")
        wrong[probe] = _probe(probe, cfg.seed, data, own, lambda case, task: index[task])
    return PromptSet(None, own, told, wrong)


def _wordings(
    cfg: ExperimentConfig, case: Case, at: int, sentence: str, texts: _Texts
) -> PromptIds:
    whole = write_prompt(sentence, case.record)
    varied = [
        vary_prompt(sentence, case.record, (cfg.seed, at, k), cfg.prompt.sentence_dropout)
        for k in range(1, cfg.prompt.variants)
    ]
    said = [(sentence,), whole, *varied]
    ids = np.array([texts(text) for text in said], np.int32)
    if 0 not in cfg.augment.flip_axes:
        return PromptIds(ids, None)
    swapped = [mirror_prompt(text) for text in said]
    if None in swapped:
        return PromptIds(ids, None)
    return PromptIds(ids, np.array([texts(text) for text in swapped if text], np.int32))


def _probe(
    probe: str,
    seed: int,
    data: RunData,
    own: Mapping[str, int],
    say: Callable[[Case, str], int],
) -> dict[str, int]:
    """For each held-out case a prompt that is not its own, drawn by seed."""
    rng = np.random.default_rng(seed)
    said = {}
    for case in data.held_out:
        if probe == "task":
            others = [say(case, task) for task in data.tasks if task != case.task]
        else:
            same_task = probe == "record"
            others = [
                own[other.id]
                for other in data.held_out
                if own[other.id] != own[case.id] and (not same_task or other.task == case.task)
            ]
        if not others:
            raise _pointless(probe, data, f"case {case.id} has no other to take")
        said[case.id] = others[rng.integers(len(others))]
    return said


def _pointless(probe: str, data: RunData, why: str) -> ConfigError:
    return ConfigError(
        f"the probe {probe!r} would change nothing on {data.dataset.name}, split "
        f"{data.held_out_name}: {why}; leave out --probe {probe}."
    )


def make_table(features: Sequence[TextFeature], *, multiple: int = 1) -> TextTable:
    """The table of some texts, on the host.

    Args:
        features: by row.
        multiple: of which its length is one, so that tables of other texts have the same shape.
    """
    longest = max(len(row.feature) for row in features)
    length = -(-longest // multiple) * multiple
    table = np.zeros((len(features), length, features[0].feature.shape[-1]), np.float32)
    valid = np.zeros(table.shape[:2], bool)
    for i, row in enumerate(features):
        table[i, : len(row.feature)] = row.feature
        valid[i, : len(row.feature)] = True
    return TextTable(table, valid)  # type: ignore[arg-type]  # on the host as yet


def _warn_of_losses(
    features: Sequence[TextFeature], own: Mapping[str, int], told: Mapping[str, PromptIds]
) -> None:
    """Says which cases' texts are too long for the language model, and by how much."""
    lost = {case: features[row].lost for case, row in own.items()}
    lost |= {case: max(features[row].lost for row in ids.ids) for case, ids in told.items()}
    cut = sorted((case for case, n in lost.items() if n), key=lambda case: -lost[case])
    if cut:
        named = ", ".join(f"{case} {lost[case]}" for case in cut[:_NAMED])
        more = f" and {len(cut) - _NAMED} more" if len(cut) > _NAMED else ""
        print(
            f"warning: texts longer than the language model reads are cut; tokens lost by case: "
            f"{named}{more}",
            flush=True,
        )
