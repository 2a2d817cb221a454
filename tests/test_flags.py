"""Command lines and config files to configurations; every mistake is one sentence."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from rtsam_jax import errors
from rtsam_jax.config import ExperimentConfig
from rtsam_jax.flags import parse_config
from tests.tiny import REPOSITORY

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

HEAD = """from rtsam_jax.config import ExperimentConfig


def get_config():
    cfg = ExperimentConfig()
    cfg.data.dataset = "somewhere"
"""


@pytest.fixture
def parse(tmp_path: Path):
    def run(*arguments: str, body: str | None = "", whole: str | None = None) -> ExperimentConfig:
        file = tmp_path / "given.py"
        file.write_text(whole if whole is not None else HEAD + (body or "") + "    return cfg\n")
        sys.modules.pop("config_config", None)  # ml_collections reloads into the old module
        return parse_config(["train", f"--config={file}", *arguments], usage="How.")

    return run


def test_overrides(parse) -> None:
    cfg = parse(
        "--config.optim.lr=1e-4",
        "--config.steps=7",
        "--config.name=fine",
        "--config.model.freeze_encoder=False",
        "--config.data.inner_fold=-1",
        "--config.optim.b1", "0.5",
    )  # fmt: skip
    assert (cfg.optim.lr, cfg.steps, cfg.name, cfg.optim.b1) == (1e-4, 7, "fine", 0.5)
    assert cfg.model.freeze_encoder is False and cfg.data.inner_fold == -1
    assert parse("--noconfig.model.freeze_encoder").model.freeze_encoder is False
    assert cfg.data.dataset == "somewhere"  # what the file says stays


@pytest.mark.parametrize(
    ("text", "expected"),
    [("(0.5,0.7)", (0.5, 0.7)), ("0.5,0.7", (0.5, 0.7)), ("0.5", (0.5,)), ("()", ())],
)
def test_number_tuples(parse, text: str, expected: tuple) -> None:
    assert parse(f"--config.optim.milestones={text}").optim.milestones == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("orn", ("orn",)), ("orn,ce", ("orn", "ce")), ("('orn','ce')", ("orn", "ce"))],
)
def test_name_tuples(parse, text: str, expected: tuple) -> None:
    assert parse(f"--config.data.tasks={text}").data.tasks == expected


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("--config.optim.lrr=3", "config.optim.lrr does not exist; did you mean optim.lr"),
        ("--config.batchsize=3", "did you mean batch_size"),
        ("--config.nothing=3", "see --help"),
        ("--config.model=vit_b_ori", "config.model does not exist"),
        ("--noconfig.model.freeze_encodr", "did you mean model.freeze_encoder"),
    ],
)
def test_an_unknown_field(parse, argument: str, sentence: str) -> None:
    with pytest.raises(errors.UnknownConfigField) as caught:
        parse(argument)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("--config.optim.lr=much", "optim.lr=much"),
        ("--config.steps=1.5", "steps=1.5"),
        ("--config.model.freeze_encoder=maybe", "freeze_encoder=maybe"),
        ("--config.optim.milestones=soon", "config.optim.milestones"),
        ("--config.data.tasks=5", "config.data.tasks"),
        ("--config.optim.lr=-1", "config.optim.lr is -1.0"),
        ("--config.optim.lr=nan", "config.optim.lr is nan"),
        ("--config.data.spacing_mm=inf", "config.data.spacing_mm is inf"),
        ("--config.optim.clip_norm=inf", "config.optim.clip_norm is inf, but it must be finite"),
        ("--config.loss.dice=nan", "config.loss.dice is nan, but it must be finite"),
        ("--config.data.builder_cases=-5", "config.data.builder_cases is -5"),
        ("--config.data.eval_split=train", "another split than data.train_split"),
        ("--config.augment.flip_axes=(0,0)", "distinct axes"),
        ("--config.optim.milestones=(0.5,0.5)", "strictly increasing"),
        ("--config.seed=-1", "config.seed is -1"),
        ("--config.steps=-4", "config.steps is -4"),
        ("--config.batch_size=0", "config.batch_size is 0"),
        ("--config.click.sampling=all", "one of 'uniform', 'balanced'"),
        ("--config.loss.pass_weights=(1,2)", "config.loss.pass_weights"),
        ("--config.steps", "Missing value"),
        ("--verbos", "verbos"),
        ("more", "unexpected argument 'more'"),
    ],
)
def test_a_wrong_value(parse, argument: str, sentence: str) -> None:
    with pytest.raises(errors.ConfigError) as caught:
        parse(argument)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("body", "kind", "sentence"),
    [
        (
            "cfg.optim.learning_rate = 1", errors.UnknownConfigField,
            "config.optim.learning_rate does not exist",
        ),
        ("cfg.batchsize = 1", errors.UnknownConfigField, "did you mean batch_size"),
        ("cfg.steps = '100'", errors.ConfigError, "config.steps is '100'"),
        ("cfg.steps = 1e3", errors.ConfigError, "type int"),
        ("cfg.evaluate = 1", errors.ConfigError, "type bool"),
        ("cfg.optim = None", errors.ConfigError, "must stay a section"),
        ("cfg.data.tasks = 'orn'", errors.ConfigError, "type tuple"),
        ("cfg.data.tasks = (1,)", errors.ConfigError, "a tuple of texts"),
        ("cfg.optim.milestones = ('a',)", errors.ConfigError, "a tuple of numbers"),
        ("1 / 0", errors.ConfigError, "ZeroDivisionError"),
        ("import no_such_module", errors.ConfigError, "no_such_module"),
        ("return {}", errors.ConfigError, "must return an ExperimentConfig"),
    ],
)  # fmt: skip
def test_a_config_file_with_a_mistake(parse, body: str, kind: type, sentence: str) -> None:
    with pytest.raises(errors.ConfigError) as caught:
        parse(body=f"    {body}\n")
    assert type(caught.value) is kind and sentence in str(caught.value)


def test_what_a_config_file_may_do(parse) -> None:
    body = "    cfg.data.tasks = ['a']\n    cfg.optim.lr = 1\n"
    cfg = parse(body=body)
    assert cfg.data.tasks == ("a",) and isinstance(cfg.optim.lr, float)


@pytest.mark.parametrize("text", ["def get_config(:\n", "x = 1\n", "\0"])
def test_a_file_that_is_no_config(parse, text: str) -> None:
    with pytest.raises(errors.ConfigError):
        parse(whole=text)


def test_no_config_file(tmp_path: Path) -> None:
    with pytest.raises(errors.ConfigError, match="no config file given"):
        parse_config(["train"], usage="")
    for path in (tmp_path / "nowhere.py", tmp_path):
        with pytest.raises(errors.MissingFile, match="does not exist"):
            parse_config(["train", "--config", str(path)], usage="")


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_every_field(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        parse_config(["train", flag], usage="How.")
    assert left.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("How.") and "--config.optim.lr=0.0003" in text
    assert len(text.splitlines()) > 60


CONFIGS = sorted((REPOSITORY / "configs").glob("*.py"))


def load(path: Path) -> ExperimentConfig:
    spec = importlib.util.spec_from_file_location(f"tested_{path.stem}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_projects_configs(path: Path) -> None:
    sys.modules.pop("config_config", None)  # ml_collections reloads into the old module
    cfg = parse_config(["train", "--config", str(path)], usage="")
    assert cfg == load(path)
    assert ExperimentConfig.from_dict(json.loads(cfg.to_json())) == cfg
    assert f"--config configs/{path.name}" in path.read_text()  # its launch command


def test_the_papers_numbers() -> None:
    """Sec. 4.1 and Eqs. 1-4."""
    cfg = load(REPOSITORY / "configs" / "rt_injury.py")
    assert (cfg.epochs, cfg.batch_size, cfg.optim.lr, cfg.dose.tau) == (100, 4, 3e-4, 0.8)
    assert (cfg.click.iterations, cfg.click.per_iteration) == (3, 4)
    assert cfg.model.freeze_encoder and cfg.model.preset == "vit_b_ori"
    assert (cfg.loss.dice, cfg.loss.focal_tversky) == (0.7, 0.3)
    assert (cfg.loss.alpha, cfg.loss.beta, cfg.loss.gamma) == (0.5, 0.5, 0.75)


def test_a_record_of_another_version() -> None:
    for values in ({"optim": {"momentum": 0.9}}, {"momentum": 0.9}):
        with pytest.raises(errors.ConfigError, match="momentum is unknown"):
            ExperimentConfig.from_dict(values)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ce=the swollen white matter", ("ce=the swollen white matter",)),
        ("ce=edema, all of it; orn=dead bone", ("ce=edema, all of it", "orn=dead bone")),
        ("('ce=edema',)", ("ce=edema",)),
        ("", ()),
    ],
)
def test_words_of_tasks(parse, text: str, expected: tuple[str, ...]) -> None:
    assert parse(f"--config.prompt.task_texts={text}").prompt.task_texts == expected
