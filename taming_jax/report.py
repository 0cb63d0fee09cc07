"""Run directories -> their last figures and their pictures.

python -m taming_jax.report runs/openmoji_vq runs/openmoji_transformer runs/openmoji_samples
"""

import json
import sys
from pathlib import Path

from taming_jax.errors import UserError


def report(folder: Path) -> list[str]:
    """Lines about a run: the last validation, the time that training took and its rate, the pictures."""
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist")
    lines = [str(folder)]
    log = folder / "metrics.jsonl"
    if log.exists():
        records = [json.loads(line) for line in log.read_text().splitlines()]
        validations = [r for r in records if r["split"] == "validation"]
        rates = [r["steps_per_second"] for r in records if r["split"] == "train"]
        if validations:
            last = {k: v for k, v in validations[-1].items() if k not in ("step", "split")}
            lines += [f"  {name:<16} {value:.4g}" for name, value in last.items()]
        lines.append(f"  {'steps per second':<16} {min(rates):.3g} to {max(rates):.3g}")
    return lines + [f"  picture          {p}" for p in sorted(folder.glob("*.png"))]


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print("\n".join(report(Path(name))))
