"""What the terminal says of a run: its last figures, and where its pictures are."""

from taming_jax.console import duration
from taming_jax.errors import printable
from taming_jax.quality import record as evaluations
from taming_jax.report.run import Run, is_figure


def lines(run: Run) -> list[str]:
    """Lines about a run: its last validation, how long its steps took, its evaluations, its pictures."""
    told = [str(run.folder), *(f"  {printable(name):<16} {value:.4g}" for name, value in run.last().items())]
    if trained := run.trained():
        rates = [record["steps_per_second"] for record in trained]
        told.append(f"  {'training':<16} {duration(sum(record['seconds'] for record in trained))}")
        told.append(f"  {'steps per second':<16} {min(rates):.3g} to {max(rates):.3g}")
    for name, numbers in {entry["name"]: entry["numbers"] for entry in run.evaluations}.items():
        told.append(f"  {printable(name)}, with its protocol in {evaluations.FILE}:")
        told += [f"  {printable(n):<22} {value:.4g}" for n, value in numbers.items() if is_figure(n, value)]
    return told + [f"  {'picture':<16} {file}" for file in sorted(run.folder.glob("*.png"))]
