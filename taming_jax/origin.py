"""The weights of another run with which a run begins (`config.init_from`)."""

from typing import Any

import jax
from ml_collections import ConfigDict

from taming_jax import checkpoint, completion, parts
from taming_jax.console import say
from taming_jax.data.walk import listed
from taming_jax.errors import UserError
from taming_jax.fields import differences
from taming_jax.hub import address
from taming_jax.state import TrainState

# How the fields begin that shapes follow from.
SHAPING = {
    "vqgan": ("input ", "model.", "quantizer.", "disc."),
    "transformer": ("gpt.", "cond.name", "cond.max_words", "data.size", "first_stage.config.quantizer."),
}


def load(config: ConfigDict, origin: ConfigDict, shapes: TrainState) -> dict:
    """What a new run takes over, for `Task.init`: numpy trees {'gen': ...} or {'gpt': ...}, and with a discriminator
    {'disc': {'params': ..., 'batch_stats': ...}}.

    Of the newest step that is whole, averages where there are some; without the parts of `config.fresh`, and without
    the table of the classes where they are others. config: complete. origin: the config of that run. shapes: of the new
    run's state. Says what it does. Raises UserError where an array has another shape.
    """
    workdir, anew = address.find(config.init_from), check_labels(config, origin)
    check_codes(config, origin)

    def kept(net: str, tree: dict) -> dict:
        return {name: value for name, value in parts.without(net, tree, config.fresh).items() if name not in anew}

    def take(step: int, found: Any, place: tuple[str, ...], like: dict) -> dict:
        if misfit := checkpoint.find_difference(found, like, f"in {workdir}"):
            changed = [line for line in differences(origin, config) if line.startswith(SHAPING[config.task])]
            told = f"; fields that differ: {', '.join(changed[:5])}" if changed else ""
            raise UserError(f"init_from: {'/'.join(place)}/{misfit}{told}")
        return checkpoint.load_tree(workdir, step, place, like)

    def read(step: int) -> dict:
        tree, begin = checkpoint.read_metadata(workdir, step), {}
        for net, params in shapes.params.items():
            if net in tree["params"] and net not in parts.OF_TRAINING and (like := kept(net, params)):
                place = checkpoint.place_of(tree, net)
                found = tree[place[0]][net] if place[0] == "params" else tree["extra"][net]["ema"]
                begin[net] = take(step, kept(net, found), place, like)
        if "disc" in begin:
            kept_stats, place = shapes.extra["disc"]["batch_stats"], ("extra", "disc", "batch_stats")
            stats = take(step, tree["extra"]["disc"]["batch_stats"], place, kept_stats) if kept_stats else {}
            begin["disc"] = {"params": begin["disc"], "batch_stats": stats}
        return begin

    begin, step, _ = checkpoint.newest(workdir, read, checkpoint.required_steps(workdir))
    new = [*config.fresh, *anew, *(net for net in shapes.params if net not in begin)]
    told = f"beginning with the weights of {config.init_from} at step {step}"
    told += f"; anew: {', '.join(dict.fromkeys(new))}" if new else ""
    if config.freeze:
        net = completion.NETS[config.task]
        whole = shapes.params[net]
        learned = parts.without(net, whole, config.freeze)
        sizes = [sum(x.size for x in jax.tree.leaves(tree)) / 1e6 for tree in (learned, whole)]
        told += f"; as they are: {', '.join(config.freeze)}; {sizes[0]:.2f} of {sizes[1]:.2f} M parameters learn"
    say(told)
    return begin


def check_labels(config: ConfigDict, origin: ConfigDict) -> tuple[str, ...]:
    """The modules that begin anew since the classes are others than that run's; says so.

    Raises UserError where they are to stay as they are.
    """
    names, before = tuple(config.data.class_names), tuple(origin.data.class_names)
    if not completion.counts_classes(config) or names == before:
        return ()
    new, old = (listed(found) if found else "none" for found in (names, before))
    told = f"the classes are {new}, those of {config.init_from} {old}"
    if "embeddings" in config.freeze:
        raise UserError(f"freeze={tuple(config.freeze)}: {told}, so their embeddings have to learn")
    say(f"{told}: the transformer learns them anew")
    return parts.LABELS


def check_codes(config: ConfigDict, origin: ConfigDict) -> None:
    """Says so where a transformer's first stages give other codes than those that it begins with."""
    for name in completion.stages_of(config):
        ours, theirs = config[name], origin[name]
        if ours.digest == theirs.digest or not theirs.workdir:
            continue
        same = completion.digest_of_codes(ours) == completion.digest_of_codes(theirs)
        say(
            f"{name}: {ours.origin} has other weights than that of {config.init_from}, and the same codes"
            if same
            else f"careful: {name}: {ours.origin} has other codes than that of {config.init_from}; all of them have to"
            " be learned anew"
        )
