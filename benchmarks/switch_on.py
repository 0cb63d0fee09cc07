"""What the discriminator's switch-on does to the validation's LPIPS: our ramp beside the paper's hard switch.

    python -m benchmarks.switch_on --workdir=runs/switch_on    # half an hour on two CPU cores; needs matplotlib

Both go on from one checkpoint of the base of `configs/openmoji_vq.py` at the step before the discriminator, trained
with LPIPS until then, and evaluate every 100 steps. Writes `switch_on.png`, and says how much worse LPIPS ever was than
at the switch.
"""

import shutil
from pathlib import Path

from absl import flags
from matplotlib import pyplot
from ml_collections import ConfigDict

from configs import openmoji_vq
from taming_jax import cli
from taming_jax.console import say
from taming_jax.loop import train
from taming_jax.writer import LOG, read_records

PERCEPTUAL_START, START, STEPS, EVERY = 900, 1800, 3000, 100
SHOWN = 300  # steps before the switch
RECIPES = {
    "ramp over 300 steps, λ at most 1": {},
    "hard switch, λ at most 10,000 (the paper's)": dict(gen_start=START, ramp_steps=0, max_weight=1e4, delta=1e-6),
}


def get_config() -> ConfigDict:
    """The first stage that those on OpenMoji begin with, with LPIPS long before the discriminator."""
    c = openmoji_vq.get_base()
    c.steps, c.eval_every, c.keep_checkpoints = STEPS, EVERY, STEPS // EVERY
    c.loss.perceptual_start = PERCEPTUAL_START
    c.disc.start, c.disc.gen_start = START, START + 100
    return c


def curve(workdir: Path) -> dict[int, float]:
    """LPIPS of a run's evaluations, by the step."""
    return {r["step"]: r["lpips"] for r in read_records(workdir / LOG) if r["split"] == "validation"}


def main() -> None:
    root = cli.required_folder("workdir")
    first = root / "recipe0"
    _, ax = pyplot.subplots(figsize=(8, 4.5))
    for i, (name, changed) in enumerate(RECIPES.items()):
        run, config = root / f"recipe{i}", get_config()
        if not run.exists() and run != first:  # up to the switch, all recipes are one run
            later = [p.name for p in (first / "checkpoints").iterdir() if int(p.name) > START]
            shutil.copytree(first, run, ignore=shutil.ignore_patterns(*later))
        config.disc.update(changed)
        train(config, run)
        values = curve(run)
        worst = max(value for step, value in values.items() if step > START)
        change = worst / values[START] - 1
        say(f"{name}: LPIPS {values[START]:.4f} at the switch, {worst:.4f} at worst after it ({change:+.1%})")
        shown = {step: value for step, value in values.items() if step >= START - SHOWN}
        ax.plot(shown.keys(), shown.values(), label=name)
    ax.axvline(START, color="grey", linestyle=":", label="the discriminator begins")
    ax.set(xlabel="step", ylabel="LPIPS of held-out drawings", xlim=(START - SHOWN, STEPS))
    ax.legend()
    pyplot.tight_layout()
    pyplot.savefig(root / "switch_on.png", dpi=100)


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of the runs, made if needed; runs in it are resumed.")
    cli.run(main)
