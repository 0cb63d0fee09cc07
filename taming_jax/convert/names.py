"""The names of the original's tensors and classes, and the rules that lead to them from ours."""

import re

from ml_collections import ConfigDict

from taming_jax.errors import UserError
from taming_jax.models.perceptual import VGG16_DEPTHS

Rules = tuple[tuple[str, str], ...]

# Our paths -> the original's, one substitution after the other; then '/' becomes '.', and kernels and scales 'weight'.
GENERATOR: Rules = (
    (r"^(encoder|decoder)/(down|up)_(\d+)_(block|attn)_(\d+)", r"\1/\2/\3/\4/\5"),
    (r"^encoder/down_(\d+)_conv", r"encoder/down/\1/downsample/conv"),
    (r"^decoder/up_(\d+)_conv", r"decoder/up/\1/upsample/conv"),
    (r"^(encoder|decoder)/mid_(block|attn)_(\d)", r"\1/mid/\2_\3"),
    (r"^conv_out/", r"decoder/conv_out/"),
    (r"^quantize/embedding$", r"quantize/embedding/weight"),
)
GUMBEL: Rules = (*GENERATOR, (r"^quantize/embedding/weight$", r"quantize/embed/weight"))
TRANSFORMER: Rules = (
    (r"^token_embedding$", r"tok_emb/weight"),
    (r"^position_embedding$", r"pos_emb"),
    (r"^blocks_(\d+)/", r"blocks/\1/"),
    (r"/mlp_in/", r"/mlp/0/"),
    (r"/mlp_out/", r"/mlp/2/"),
)
QUANTIZERS = ("vq", "ema", "gumbel")  # ours that the original has
ORDERS = {
    "Identity": "row_major",
    "Subsample": "subsample",
    "ZCurve": "z_curve",
    "SpiralOut": "spiral_out",
    "SpiralIn": "spiral_in",
    "Random": "random",
    "AlternateParsing": "alternate",
}
LAYOUTS = {"objects_bbox": "bbox", "objects_center_points": "center"}


def generator_rules(config: ConfigDict) -> Rules:
    """For the generator of a first stage's config; raises UserError for a quantizer that the original does not have."""
    if config.quantizer.name not in QUANTIZERS:
        raise UserError(f"the original has no quantizer {config.quantizer.name!r}, only {', '.join(QUANTIZERS)}")
    return GUMBEL if config.quantizer.name == "gumbel" else GENERATOR


def discriminator_rules(n_layers: int) -> Rules:
    """For the discriminator, a plain sequence in the original: convolution and norm are followed by a leaky ReLU."""
    pairs = [(f"^conv_{n}/", f"main/{3 * n - 1}/") for n in range(1, n_layers + 1)]
    pairs += [(f"^norm_{n}/", f"main/{3 * n}/") for n in range(1, n_layers + 1)]
    return (("^conv_0/", "main/0/"), ("^conv_out/", f"main/{3 * n_layers + 2}/"), *pairs)


def lpips_names() -> dict[str, str]:
    """Convolution of our VGG16 -> its name in the original's LPIPS, where a max-pool counts as a layer too."""
    names, layer = {}, 0
    for block, depth in enumerate(VGG16_DEPTHS, 1):
        for i in range(1, depth + 1):
            names[f"conv{block}_{i}"] = f"net.slice{block}.{layer}"
            layer += 2  # and its ReLU
        layer += 1
    return names


def torch_name(path: str, rules: Rules) -> str:
    """'encoder/conv_in/kernel' -> 'encoder.conv_in.weight'."""
    for pattern, name in rules:
        path = re.sub(pattern, name, path)
    path = re.sub(r"/(kernel|scale)$", "/weight", path)
    return path.replace("/", ".")
