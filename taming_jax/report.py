"""Reports the last figures and the pictures of run directories.

python -m taming_jax.report runs/openmoji_vq runs/openmoji_transformer runs/openmoji_samples
"""

import json
from pathlib import Path

from taming_jax import cli, values
from taming_jax.console import duration
from taming_jax.errors import UserError, printable
from taming_jax.quality import record as evaluations

RATES = ("steps_per_second", "seconds")


def report(folder: Path) -> list[str]:
    """Lines about a run: its last validation, how long its steps took, its pictures."""
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist")
    lines, records = [str(folder)], []
    log = folder / "metrics.jsonl"
    for line in log.read_bytes().splitlines() if log.exists() else []:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):  # cut off when the run was killed, or damaged
            continue
        records += [record] if isinstance(record, dict) and "split" in record else []
    for last in [r for r in records if r["split"] == "validation"][-1:]:
        lines += [f"  {printable(name):<16} {value:.4g}" for name, value in last.items() if is_figure(name, value)]
    trained = [r for r in records if r["split"] == "train" and all(is_figure(n, r.get(n)) for n in RATES)]
    if trained:
        rates = [r["steps_per_second"] for r in trained]
        lines.append(f"  {'training':<16} {duration(sum(r['seconds'] for r in trained))}")
        lines.append(f"  {'steps per second':<16} {min(rates):.3g} to {max(rates):.3g}")
    for name, numbers in {entry["name"]: entry["numbers"] for entry in evaluations.read(folder)}.items():
        lines.append(f"  {printable(name)}, with its protocol in {evaluations.FILE}:")
        lines += [f"  {printable(n):<22} {value:.4g}" for n, value in numbers.items() if is_figure(n, value)]
    return lines + [f"  {'picture':<16} {p}" for p in sorted(folder.glob("*.png"))]


def is_figure(name: str, value: object) -> bool:
    """Whether a field of a record is a number to show."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return name not in ("step", "split") and number and abs(value) < values.FLOAT32  # which NaN is not


def main(*folders: str) -> None:
    for name in folders:
        values.path("run directory", name)
        print("\n".join(report(Path(name))))


if __name__ == "__main__":
    cli.run(main, operands="RUN")
