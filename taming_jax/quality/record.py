"""`evaluation.json`: numbers with the protocol that they follow, one entry for each evaluation, none written over."""

import json
from pathlib import Path

from taming_jax import images
from taming_jax.console import say
from taming_jax.fields import differences

FILE = "evaluation.json"
STEP = "samples.run.step"  # in a protocol
MOVING = (STEP, "samples.run.weights")


def read(folder: Path) -> list[dict]:
    """The entries of a folder, {'name', 'numbers', 'protocol', maybe 'by_class'}, the newest last; [] for none."""
    file = folder / FILE
    try:
        found = json.loads(file.read_text()) if file.exists() else []
    except (OSError, ValueError, RecursionError):
        return []
    found = found if isinstance(found, list) else []
    kinds = dict(name=str, numbers=dict, protocol=dict)
    return [
        entry
        for entry in found
        if isinstance(entry, dict) and all(isinstance(entry.get(name), kind) for name, kind in kinds.items())
    ]


def step_of(entry: dict) -> int | None:
    """The step of the run that an entry is about, None where its protocol does not say it."""
    found = entry["protocol"]
    for name in STEP.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    return found if type(found) is int and 0 <= found < 1 << 53 else None


def write(
    folder: Path,
    name: str,
    numbers: dict[str, float],
    protocol: dict,
    by_class: dict[str, dict[str, float]] | None = None,
    moves: bool = False,
) -> None:
    """Adds an entry, in place of one of the same protocol; says where the protocol differs from the last one's.

    moves: whether the run has gone on since the last one, as in training, which need not be said.
    """
    before = read(folder)
    last = [e for e in before if e["name"] == name][-1:]
    protocol = json.loads(json.dumps(protocol))
    changed = differences(last[0]["protocol"], protocol) if last else []
    if changed := [c for c in changed if not moves or not c.startswith(MOVING)]:
        say(f"{name}: not to be compared with the numbers before, {', '.join(changed)[:300]}")
    kept = [e for e in before if (e["name"], e["protocol"]) != (name, protocol)]
    entry = dict(name=name, numbers=numbers, protocol=protocol)
    entries = [*kept, entry | (dict(by_class=by_class) if by_class is not None else {})]
    images.write_whole(folder / FILE, lambda part: part.write_text(json.dumps(entries, indent=1) + "\n"))
