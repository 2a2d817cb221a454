"""`python -m rtsam_jax.text DATASET`: what the model will be told about each case, to read."""

from __future__ import annotations

import argparse
from pathlib import Path

from rtsam_jax.config import PromptConfig
from rtsam_jax.data.cases import load_dataset
from rtsam_jax.errors import run_command
from rtsam_jax.prompts.text import mirror_prompt, write_prompt
from rtsam_jax.text.prompt_set import task_sentences


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the command."""
    parser = argparse.ArgumentParser(prog="python -m rtsam_jax.text", description=__doc__)
    parser.add_argument("dataset", type=Path, help="folder with dataset.json")
    parser.add_argument(
        "--task-text", action="append", default=[], metavar="TASK=WORDS", help="words for a task"
    )
    parser.add_argument("--free-text", action="store_true", help="accept free text in records")
    options = parser.parse_args(arguments)
    prompt = PromptConfig(task_texts=tuple(options.task_text), free_text=options.free_text)
    dataset = load_dataset(options.dataset, free_text=prompt.free_text)
    sentences = task_sentences(dataset, prompt)
    for case in dataset.cases:
        text = write_prompt(sentences[case.task], case.record)
        fixed = "" if mirror_prompt(text) is not None else "  (cannot be mirrored: not flipped)"
        print(f"{case.id}{fixed}\n  " + "\n  ".join(text))


if __name__ == "__main__":
    run_command(main)
