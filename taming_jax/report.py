"""Reports the last figures and the pictures of run directories.

python -m taming_jax.report runs/openmoji_vq runs/openmoji_transformer runs/openmoji_samples
"""

import json
import sys
from pathlib import Path

from taming_jax.console import duration
from taming_jax.errors import UserError, fail


def report(folder: Path) -> list[str]:
    """Lines about a run: its last validation, how long its steps took, its pictures."""
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist")
    lines, records = [str(folder)], []
    log = folder / "metrics.jsonl"
    for line in log.read_text().splitlines() if log.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:  # cut off when the run was killed
            continue
    for last in [r for r in records if r["split"] == "validation"][-1:]:
        lines += [f"  {name:<16} {value:.4g}" for name, value in last.items() if name not in ("step", "split")]
    trained = [r for r in records if r["split"] == "train"]
    if trained:
        rates = [r["steps_per_second"] for r in trained]
        lines.append(f"  {'training':<16} {duration(sum(r['seconds'] for r in trained))}")
        lines.append(f"  {'steps per second':<16} {min(rates):.3g} to {max(rates):.3g}")
    return lines + [f"  {'picture':<16} {p}" for p in sorted(folder.glob("*.png"))]


if __name__ == "__main__":
    if sys.argv[1:] in ([], ["-h"], ["--help"]):
        print(__doc__)
        sys.exit()
    try:
        for name in sys.argv[1:]:
            print("\n".join(report(Path(name))))
    except UserError as e:
        fail(str(e))
