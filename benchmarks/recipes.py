"""Ablations on OpenMoji: what a piece of a recipe is worth, one at a time, over several seeds.

    python -m benchmarks.recipes --table=wavefront --workdir=runs/recipes    # hours on two CPU cores

Each row of a table is a config with overrides that anybody can type; each row and seed is a run directory, judged as
`taming_jax.evaluate` does. What is done is not done again, so that the same command goes on, also with more seeds. It
prints the table after each seed: mean ± standard deviation over those that are there.
"""

import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from absl import flags

from taming_jax import cli, completion
from taming_jax.console import say
from taming_jax.errors import UserError
from taming_jax.generator import Generator
from taming_jax.quality import evaluators, record
from taming_jax.quality.options import KINDS
from taming_jax.writer import LOG, read_records

SPEED_SIZE = (128, 128)  # pixels of the image whose codes are counted per second: 32x32 of them


class Table(NamedTuple):
    """Rows to compare. base: what all rows override. numbers: heading -> (split of the log or evaluation, its number).

    judged: how runs are judged, see `quality.options`.
    """

    config: str
    base: dict[str, object]
    rows: dict[str, dict[str, object]]
    numbers: dict[str, tuple[str, str]]
    judged: dict[str, object]


def wavefront(lag: int, reach: int, **others: object) -> dict[str, object]:
    return {"gpt.context.kind": "wavefront", "gpt.context.lag": lag, "gpt.context.reach": (reach, reach)} | others


SAMPLES = dict(features="efficientnet", num_samples=2000)
OF_TRANSFORMERS = {
    "nats per code": ("validation", "nll"),
    "fd": ("samples", "fd_efficientnet"),
    "precision": ("samples", "precision_efficientnet"),
    "recall": ("samples", "recall_efficientnet"),
}
OF_TOKENIZERS = {
    "PSNR": ("validation", "psnr"),
    "LPIPS": ("validation", "lpips"),
    "rfd": ("reconstructions", "rfd_efficientnet"),
    "perturbed fd": ("reconstructions", "pfd_efficientnet"),
    "codes in use": ("validation", "code_use"),
}
DROPOUT = ("gpt.embd_pdrop", "gpt.attn_pdrop", "gpt.resid_pdrop")
STEPS = ("steps", "eval_every", "checkpoint_every")
SHIPPED = {"first_stage.workdir": "openmoji_tokenizer"}
IDS_ALONE = {"vector_weight": 0.0, "vector_init": 0.0}
PAPER = {"gpt.architecture": "gpt", "gpt.context.kind": "window", "gpt.context.places": False} | IDS_ALONE
PAPERS_ADAM = PAPER | {"optim.name": "adam", "optim.learning_rate": 1e-3}
ADAM = {"optim.name": "adam", "optim.learning_rate": 1.5e-3}  # for few steps; the paper's is far lower
# The pieces of the paper's first stage.
DISC = {"disc.weight": 0.8, "disc.ramp_steps": 0, "disc.max_weight": 1e4}
PAPERS_LOSS = {"loss.pixel": "l1", "loss.perceptual_weight": 1.0, "loss.perceptual_start": 0, "loss.perceptual_crop": 0}
PLAIN = {"restart_codes_after": 0, "ema_decay": 0.0, "optim.schedule": "constant"}
SINGLE_PIXELS = {"model.patch": 1, "model.ch_mult": (1, 1, 2)}
PAPERS_NET = {"model.network": "vqgan", "model.attn_resolutions": (16,)}


def tokenizer(steps: int, *overrides: dict[str, object]) -> dict[str, object]:
    """A row of so many steps; LPIPS begins after four fifths of them, a discriminator after half."""
    row = {"loss.perceptual_start": steps * 4 // 5, "disc.start": steps // 2, "disc.gen_start": steps // 2}
    for fields in overrides:
        row |= fields
    return row | dict.fromkeys(STEPS, steps)


TABLES = {
    "transformer": Table(
        "openmoji_transformer",
        SHIPPED | dict.fromkeys(STEPS, 400),
        {
            "the paper's, with Adam": PAPERS_ADAM,
            "the same, for as long as the last row": PAPERS_ADAM | dict.fromkeys(STEPS, 690),
            "the paper's, with Muon": PAPER,
            "a wavefront": PAPER | {"gpt.context.kind": "wavefront"},
            "the same with modern layers": {"gpt.context.places": False} | IDS_ALONE,
            "the same, which know their places": IDS_ALONE,
            "the same, which guess vectors": {"vector_init": 0.0},
            "the same, whose embeddings begin with them: `openmoji_transformer`": {},
        },
        OF_TRANSFORMERS,
        SAMPLES,
    ),
    "wavefront": Table(
        "openmoji_transformer",
        # Few steps: with Muon, overfitting begins soon after.
        SHIPPED
        | PAPER
        | {"batch_size": 16, "sample.temperature": 0.8, "sample.top_p": 0.9}
        | dict.fromkeys(DROPOUT, 0.1)
        | dict.fromkeys(STEPS, 200),
        {
            "paper": {},
            "raster, reach 8": wavefront(9, 8),  # a lag beyond the reach's columns
            "lag 4, reach 8": wavefront(4, 8),
            "lag 3, reach 8": wavefront(3, 8),
            "lag 2, reach 8": wavefront(2, 8),
            "lag 1, reach 8": wavefront(1, 8),
            "lag 3, reach 4": wavefront(3, 4),
            "lag 3, reach 2": wavefront(3, 2),
            "lag 3, reach 4, 2 layers": wavefront(3, 4, **{"gpt.num_layers": 2}),
            "lag 3, reach 4, 8 layers": wavefront(3, 4, **{"gpt.num_layers": 8}),
            "lag 3, reach 4, modern layers": wavefront(3, 4, **{"gpt.architecture": "modern"}),
            "the same, which know their places": wavefront(
                3, 4, **{"gpt.architecture": "modern", "gpt.context.places": True}
            ),
            "modern layers that guess vectors": wavefront(3, 4, **{"gpt.architecture": "modern", "vector_weight": 1.0}),
            "the same, whose embeddings begin with them": wavefront(
                3, 4, **{"gpt.architecture": "modern", "vector_weight": 1.0, "vector_init": 0.1}
            ),
        },
        OF_TRANSFORMERS,
        SAMPLES,
    ),
    # As many steps as 200 seconds of one core allow: rows are equal in time, not in steps.
    "tokenizer": Table(
        "openmoji_vq",
        {"data.size": 64},
        {
            "the paper's recipe": tokenizer(150, PAPERS_NET, SINGLE_PIXELS, PLAIN, ADAM, PAPERS_LOSS, DISC),
            "no discriminator, squared errors, LPIPS at the end": tokenizer(
                330, PAPERS_NET, SINGLE_PIXELS, PLAIN, ADAM
            ),
            "the same with codes that move, averages, a cosine": tokenizer(330, PAPERS_NET, SINGLE_PIXELS, ADAM),
            "the same with Muon": tokenizer(320, PAPERS_NET, SINGLE_PIXELS),
            "the same with norms of single places": tokenizer(320, SINGLE_PIXELS),
            "Muon on squares of 2x2 pixels": tokenizer(525, PAPERS_NET),
            "both: `openmoji_vq`": tokenizer(560),
            "the same with VQGAN+'s discriminator": tokenizer(
                265, {"disc.network": "blurred", "disc.adaptive": False, "disc.weight": 0.1, "disc.lecam_weight": 1e-3}
            ),
        },
        OF_TOKENIZERS,
        dict(features="efficientnet"),
    ),
}


def make(table: Table, overrides: dict[str, object], seed: int, run: Path) -> None:
    """Trains and judges the run of a row and a seed, as far as that is not done."""
    fields = table.base | overrides | {"seed": seed}
    command = ["taming_jax.train", f"--config={table.config}", f"--workdir={run}"]
    command += [f"--config.{name}={value}" for name, value in fields.items()]
    say("$ python -m " + " ".join(command))
    if done := subprocess.run([sys.executable, "-m", *command]).returncode:
        sys.exit(done)
    kind = evaluators.kind_of(completion.load_config(run)[0])
    if not judged_before(run, kind, table):
        _, judged = evaluators.judge_run(run, store=run.parent / "features", **table.judged)
        record.write(run, kind, judged.numbers, judged.protocol)


def judged_before(run: Path, kind: str, table: Table) -> list[dict[str, float]]:
    """Numbers of a run's samples or reconstructions, as many as the table asks for.

    Not those of samples of all classes alike, as they were once judged.
    """
    found = [(e["numbers"], e["protocol"]["samples"]) for e in record.read(run) if e["name"] == kind]
    if kind == "samples":
        found = [(n, told) for n, told in found if told["count"] == table.judged["num_samples"] and "classes" in told]
    return [numbers for numbers, _ in found]


def number(run: Path, split: str, name: str, table: Table) -> float:
    """A number of a run's last evaluation."""
    if split in KINDS:
        return judged_before(run, split, table)[-1][name]
    return [entry[name] for entry in read_records(run / LOG) if entry.get("split") == split][-1]


def codes_per_second(run: Path) -> float:
    """How fast one larger image is painted, compiling aside."""
    generator = Generator.load(run)
    for _ in range(2):
        began = time.perf_counter()
        generator.sample(1, size=SPEED_SIZE, classes=[0], progress=False)
    height, width = (side // generator.stage.first.patch for side in SPEED_SIZE)
    return height * width / (time.perf_counter() - began)


def line(name: str, runs: list[Path], table: Table, speed: bool) -> str:
    """A row of the table in Markdown."""
    cells = []
    for split, field in table.numbers.values():
        found = [number(run, split, field, table) for run in runs]
        spread = f" ± {statistics.stdev(found):.2g}" if len(found) > 1 else ""
        cells.append(f"{statistics.mean(found):.4g}{spread}")
    cells += [f"{codes_per_second(runs[0]):.0f}"] if speed else []
    return f"| {' | '.join([name, *cells])} |"


def main() -> None:
    given, root = flags.FLAGS, cli.required_folder("workdir")
    table = TABLES[given.table]
    seeds = [int(seed) for seed in given.seeds]
    if given.speed and table.numbers is OF_TOKENIZERS:
        raise UserError("speed: the rows of this table paint nothing")
    folder = {name: re.sub(r"\W+", "_", name) for name in table.rows}
    runs = {name: [root / given.table / f"{folder[name]}_{seed}" for seed in seeds] for name in table.rows}
    headings = ["", *table.numbers, *(["codes/s at 32x32"] if given.speed else [])]
    for at, seed in enumerate(seeds):
        for name, overrides in table.rows.items():
            make(table, overrides, seed, runs[name][at])
        print(f"| {' | '.join(headings)} |\n|{'---|' * len(headings)}")
        for name in table.rows:
            print(line(name, runs[name][: at + 1], table, given.speed and seed == seeds[-1]), flush=True)


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of the runs, made if needed; runs in it are not made again.")
    flags.DEFINE_enum("table", "wavefront", list(TABLES), "Which table.")
    flags.DEFINE_list("seeds", ["0", "1"], "Of each row.")
    flags.DEFINE_bool("speed", False, "Measure how fast the rows paint, too: on a machine that does nothing else.")
    cli.run(main)
