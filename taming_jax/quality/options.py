"""What evaluators can be told: the fields of `config.evals.<name>`, each with its default and its rule.

A kind of evaluator is a line in KINDS here, a module of that name beside this one, and a line in `evaluators.MAKERS`.
"""

from typing import Any, NamedTuple

from taming_jax.sampling.draw import RULES as SAMPLING
from taming_jax.values import Rule, among, line, optional, real, switch, whole

BATCH_SIZE = 32  # pictures that a network sees at once, by default


class Option(NamedTuple):
    """A field: what it is if nobody says so, and what it may be."""

    default: Any
    rule: Rule


class Kind(NamedTuple):
    """A kind of evaluator: the task whose runs it judges, and its fields."""

    task: str
    options: dict[str, Option]


SEEING = {
    "features": Option("efficientnet", line),  # inception:FILE, efficientnet or vgg, see `networks`
    "dtype": Option("float32", among(("float32", "bfloat16"))),  # of the network that judges
    "batch_size": Option(BATCH_SIZE, whole(1, 2**16)),  # pictures that it sees at once
    "seed": Option(0, whole()),  # of samples, and of codes that are disturbed
}
KINDS = {
    "reconstructions": Kind(
        "vqgan",
        SEEING
        | {
            "num_samples": Option(0, whole(0, 1_000_000)),  # of the validation split, 0 for all
            # See `reconstructions.Disturb`: the default of the first is the paper's, the others are ours.
            "disturbed_images": Option(0.1, real(0, 1)),
            "disturbed_codes": Option(0.9, real(0, 1)),
            "disturbed_to": Option(100, whole(1)),
        },
    ),
    "samples": Kind(
        "transformer",
        SEEING
        | {
            "num_samples": Option(2048, whole(2, 1_000_000)),
            "reference": Option("train", line),  # or validation, or a folder or file, see `viewer.read_reference`
            "by_class": Option(False, switch),
            **{name: Option(None, optional(rule)) for name, rule in SAMPLING.items()},  # None: as the run samples
        },
    ),
}


def filled(fields: dict[str, Any]) -> dict[str, Any]:
    """An evaluator's fields, with defaults for those that nobody has set."""
    return {name: option.default for name, option in KINDS[fields["kind"]].options.items()} | fields
