"""The parts of the nets, by which a config says what stays as it is (`freeze`) and what begins anew (`fresh`)."""

from collections.abc import Sequence

PARTS = {"vqgan": ("encoder", "codebook", "decoder"), "transformer": ("embeddings", "layers", "head")}
FRESH = {"vqgan": (*PARTS["vqgan"], "disc"), "transformer": PARTS["transformer"]}

# The part of a net's modules; those that are not listed belong to the part under ''.
OF_MODULES = {
    "gen": {"encoder": "encoder", "quant_conv": "encoder", "quantize": "codebook", "": "decoder"},
    "gpt": {"blocks": "layers", "final_modulation": "head", "ln_f": "head", "head": "head", "": "embeddings"},
    "disc": {"": "disc"},
    "guesses": {"": "guesses"},
}
CODES = ("encoder", "codebook")  # what determines the codes of an image
OF_TRAINING = ("guesses",)  # nets that begin anew with each run
LABELS = ("cond_embedding",)  # modules that hold conditions alone


def within(net: str, params: dict, parts: Sequence[str]) -> dict:
    """The modules of a net, by its parameters, that belong to one of these parts."""
    of = OF_MODULES[net]
    return {name: value for name, value in params.items() if of.get(name, of[""]) in parts}


def without(net: str, params: dict, parts: Sequence[str]) -> dict:
    """The others."""
    return {name: value for name, value in params.items() if name not in within(net, params, parts)}
