"""Lets the original's package be imported: stands in for the parts of its surroundings that are gone or not needed."""

import importlib
import sys
from types import ModuleType

import diffusers  # noqa: F401 (before its optional companions are stood in for)
import torch
import torchvision


def stand_in(name: str, **attributes) -> None:
    module = ModuleType(name)
    module.__dict__.update(attributes)
    sys.modules[name] = module


def instantiate(config: dict):
    module, cls = config["target"].rsplit(".", 1)
    return getattr(importlib.import_module(module), cls)(**(config.get("params") or {}))


class Vgg16:
    """torchvision's layers, without its weights."""

    def __init__(self, pretrained: bool):
        layers, width = [], 3
        for size in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0):
            if size:
                layers += [torch.nn.Conv2d(width, size, 3, padding=1), torch.nn.ReLU()]
                width = size
            else:
                layers.append(torch.nn.MaxPool2d(2))
        self.features = torch.nn.Sequential(*layers)


stand_in("pytorch_lightning", LightningModule=torch.nn.Module)
torchvision.models.vgg16 = Vgg16
stand_in("taming.main", instantiate_from_config=instantiate)  # the real one imports a trainer of 2020
stand_in("transformers", top_k_top_p_filtering=None)  # no longer there
lpips = importlib.import_module("taming.modules.losses.lpips")
lpips.LPIPS.load_from_pretrained = lambda self, name="vgg_lpips": None  # from a server
