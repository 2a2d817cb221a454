"""Prints the measured relative errors as Markdown: `python -m tests.parity.report`."""

from __future__ import annotations

from tests.parity.cases import CASES, DECODER, ENCODER
from tests.parity.gradients import gradient_errors
from tests.parity.reference import Pair, build_pair, recorded_entropy
from tests.parity.undone import UNDONE


def entropies(pair: Pair) -> dict[str, list[float]]:
    """Mean attention entropy over log(keys), per attention of the reference."""
    found = {}
    for name, case in (("image encoder", ENCODER), ("mask decoder", DECODER)):
        pair.cache.pop(case.name, None)
        with recorded_entropy() as seen:
            case.run_reference(pair)
        found[name] = [value for _, value in seen]
    return found


def main() -> None:
    """Runs every comparison once."""
    pair = build_pair()
    print("\nAttention entropy of the reference / log(number of keys): 0 one-hot, 1 uniform\n")
    for name, values in entropies(pair).items():
        print(f"- {name}: " + ", ".join(f"{value:.2f}" for value in values))
    print("\n| compared | relative error |\n|---|---|")
    for case in CASES:
        print(f"| {case.name} | {case.error(pair):.1e} |", flush=True)
    errors = gradient_errors(pair)
    print(f"| gradients of the decoder's parameters, whole vector | {errors.pop('all'):.1e} |")
    worst = max(errors, key=lambda name: errors[name])
    print(f"| the same, worst parameter ({worst}) | {errors[worst]:.1e} |")
    print("\n| trap | undone as | compared | relative error |\n|---|---|---|---|")
    for undone in UNDONE:
        for case in undone.cases:
            with undone.patch(pair.model):
                error = case.error(pair)
            print(f"| {undone.trap} | {undone.mistake} | {case.name} | {error:.1e} |", flush=True)


if __name__ == "__main__":
    main()
