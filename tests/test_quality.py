"""How good pictures are: the numbers against plain ones, and what the command says."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from scipy import linalg

import taming_jax
from configs import openmoji_transformer
from taming_jax import best, checkpoint, completion, losses, sharding
from taming_jax.errors import UserError
from taming_jax.fields import check_fields
from taming_jax.loop import train
from taming_jax.quality import evaluators, features, judge, networks, record
from taming_jax.quality import statistics as st
from taming_jax.quality.options import KINDS
from taming_jax.quality.pictures import Pictures, open_pictures
from taming_jax.quality.reconstructions import Disturb, disturb_codes, near_codes
from taming_jax.quality.samples import ask
from taming_jax.report.lines import lines as report_lines
from taming_jax.report.run import read as read_run
from taming_jax.writer import read_records
from tests.tiny import run

RNG = np.random.default_rng(0)


def make_folder(folder, count: int = 6, size: tuple[int, int] = (16, 16), mode: str = "RGB"):
    folder.mkdir()
    for i in range(count):
        picture = RNG.integers(0, 256, (*size, 4)).astype(np.uint8)
        Image.fromarray(picture).convert(mode).save(folder / f"{i}.png")
    return folder


@pytest.mark.parametrize("count", [300, 12])
def test_frechet_distance_is_that_of_a_matrix_square_root(count):
    """Of 24 features, also where there are fewer pictures; from parts, as from all at once."""
    samples = RNG.normal(size=(count, 24)) @ RNG.normal(size=(24, 24))
    reference = RNG.normal(size=(count + 5, 24)) * 2 + 0.3
    a, b = st.fit_gaussian(np.array_split(samples, 5)), st.fit_gaussian([reference])
    np.testing.assert_allclose(a.covariance, np.cov(samples, rowvar=False), rtol=1e-9, atol=1e-9)
    # In a basis of its own, so that the square root exists where the rank is not full.
    values, vectors = np.linalg.eigh(a.covariance)
    root = vectors @ np.diag(np.sqrt(values.clip(0))) @ vectors.T
    trace = np.trace(linalg.sqrtm(root @ b.covariance @ root + 1e-14 * np.eye(24))).real
    shift = samples.mean(0) - reference.mean(0)
    expected = shift @ shift + np.trace(a.covariance) + np.trace(b.covariance) - 2 * trace
    np.testing.assert_allclose(st.frechet_distance(a, b), expected, rtol=1e-6)
    np.testing.assert_allclose(st.frechet_distance(a, b), st.frechet_distance(b, a), rtol=1e-9)


def test_known_distances():
    mean, deviation = np.array([1.0, 2, 3]), np.array([1.0, 4, 9])
    a = st.Gaussian(9, mean, np.diag(deviation**2))
    b = st.Gaussian(9, mean + 2, np.diag((deviation + 3) ** 2))
    assert st.frechet_distance(a, b) == pytest.approx(3 * 4 + 3 * 9)
    assert st.frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_a_large_mean_leaves_the_covariance():
    x = RNG.normal(size=(1000, 3)) + 1e6
    np.testing.assert_allclose(st.fit_gaussian(np.array_split(x, 100)).covariance, np.cov(x, rowvar=False), rtol=1e-6)


def test_precision_and_recall_are_those_of_a_double_loop(monkeypatch):
    monkeypatch.setattr(st, "BLOCK", 16)  # several blocks
    samples, reference = RNG.normal(size=(50, 4)), RNG.normal(size=(41, 4)) * 0.7

    def share(inner, outer):
        radius = [sorted(np.linalg.norm(o - other) for other in outer)[3] for o in outer]
        return np.mean([any(np.linalg.norm(i - o) <= r for o, r in zip(outer, radius, strict=True)) for i in inner])

    found = st.precision_recall(samples, reference)
    assert found == pytest.approx((share(samples, reference), share(reference, samples)))
    assert st.precision_recall(samples, samples) == (1, 1)
    assert 0.5 < found[0] < found[1] < 1  # the reference is narrower than the samples
    expected = [min(range(41), key=lambda j, s=s: np.linalg.norm(s - reference[j])) for s in samples]
    np.testing.assert_array_equal(st.nearest(samples, np.array_split(reference, 3)), expected)


def test_inception_score_of_what_is_known():
    sure = np.where(np.eye(10)[np.arange(200) % 10] > 0, 50.0, 0)
    assert st.inception_score(sure, splits=1)[0] == pytest.approx(10)
    assert st.inception_score(np.zeros((200, 10)))[0] == pytest.approx(1)


def test_ssim_is_that_of_a_double_loop():
    x = RNG.uniform(-1, 1, (1, 14, 13, 2))
    y = np.clip(x + RNG.normal(size=x.shape) * 0.3, -1, 1)
    place = np.arange(11) - 5
    window = np.exp(-(place[:, None] ** 2 + place**2) / (2 * 1.5**2))
    window /= window.sum()
    found = []
    for c in range(2):
        for i in range(4):
            for j in range(3):
                a, b = ((z[0, i : i + 11, j : j + 11, c] + 1) / 2 for z in (x, y))
                ma, mb = (window * a).sum(), (window * b).sum()
                va, vb = (window * (a - ma) ** 2).sum(), (window * (b - mb) ** 2).sum()
                cov = (window * (a - ma) * (b - mb)).sum()
                numerator = (2 * ma * mb + 1e-4) * (2 * cov + 9e-4)
                found.append(numerator / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4)))
    np.testing.assert_allclose(losses.ssim(jnp.float32(x), jnp.float32(y)), [np.mean(found)], rtol=1e-4)
    np.testing.assert_allclose(losses.ssim(jnp.float32(x), jnp.float32(x)), 1, rtol=1e-5)


def test_codes_are_disturbed_by_their_neighbours():
    codebook = RNG.normal(size=(32, 3))
    near = near_codes(codebook, 4)
    expected = [
        sorted(set(range(32)) - {k}, key=lambda j: np.linalg.norm(codebook[j] - codebook[k]))[:4] for k in range(32)
    ]
    np.testing.assert_array_equal(near, expected)
    ids, numbers = jnp.asarray(RNG.integers(0, 32, (400, 6, 6))), jnp.arange(400)
    made = np.asarray(disturb_codes(ids, jnp.asarray(near), Disturb(0.25, 0.5, 4), numbers))
    changed = made != np.asarray(ids)
    assert 0.2 < changed.any((1, 2)).mean() < 0.3 and 0.45 < changed[changed.any((1, 2))].mean() < 0.55
    assert all(made[at] in near[ids[at]] for at in zip(*np.nonzero(changed), strict=True))
    part = disturb_codes(ids[100:130], jnp.asarray(near), Disturb(0.25, 0.5, 4), numbers[100:130])
    np.testing.assert_array_equal(part, made[100:130])  # whatever the batches


@pytest.fixture
def colours() -> networks.Network:
    """A network that sees the mean colour."""
    see = lambda weights, x: {"pool": weights["scale"] * x.astype(jnp.float32).mean((1, 2))}  # noqa: E731
    return networks.Network("vgg", "0", "none", {"scale": np.float32(1)}, see)


def test_features_are_kept_and_made_once(colours, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "PART", 4)
    mesh, asked, stops = sharding.mesh_here(), [], [KeyboardInterrupt]
    images = RNG.integers(0, 256, (11, 8, 8, 3)).astype(np.uint8)

    def read(start, stop):
        if start == 8 and stops:
            raise stops.pop()
        asked.append((start, stop))
        return images[start:stop]

    pictures = Pictures(11, {"it": 1}, read)
    with pytest.raises(KeyboardInterrupt):
        features.see(colours, pictures, mesh, store=tmp_path)
    seen = features.see(colours, pictures, mesh, store=tmp_path)
    assert asked == [(0, 4), (4, 8), (8, 11)]
    np.testing.assert_allclose(seen.all("pool"), images.mean((1, 2)), rtol=1e-5)
    held = features.see(colours, pictures, mesh)
    np.testing.assert_array_equal(held.all("pool"), seen.all("pool"))
    other = features.see(colours, pictures._replace(about={"it": 2}), mesh, store=tmp_path)
    assert asked[-3:] == [(0, 4), (4, 8), (8, 11)] and other.count == 11


def test_numbers_are_never_mixed_up(colours):
    assert colours.named("frechet") == "fd_vgg" and colours.named("precision") == "precision_vgg"
    inception = colours._replace(name="inception")
    assert [inception.named(n) for n in ("frechet", "spatial", "recall")] == ["fid", "sfid", "recall"]


def test_features_that_are_not_finite_are_refused(colours):
    pictures = Pictures(3, {}, lambda start, stop: np.zeros((stop - start, 8, 8, 3), np.uint8))
    broken = colours._replace(weights={"scale": np.float32(np.nan)})
    with pytest.raises(UserError, match="pool features that vgg has of pictures are not finite"):
        features.see(broken, pictures, sharding.mesh_here())


def test_what_is_no_set_of_pictures_gets_one_line(tmp_path):
    two = make_folder(tmp_path / "two sizes", 2)
    Image.new("RGB", (8, 8)).save(two / "3.png")
    make_folder(tmp_path / "clear", 2, mode="RGBA")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.npz").write_text("no archive")
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    np.savez(tmp_path / "floats.npz", arr_0=np.zeros((2, 8, 8, 3)))
    for name, message in {
        "two sizes": "16x16 and 8x8 pixels .*crop all to one size",
        "clear": "mode RGBA; save pictures as RGB",
        "empty": "holds no pictures",
        "nowhere": "a folder of pictures, or an .npz",
        "text.npz": "cannot be read as an archive",
        "other.npz": "has no arr_0.*but x",
        "floats.npz": r"float64 \(2, 8, 8, 3\), not uint8",
    }.items():
        with pytest.raises(UserError, match=f"samples.*{message}"):
            pictures = open_pictures("samples", tmp_path / name)
            pictures.read(0, pictures.count)


def test_statistics_of_another_network_are_refused(colours, tmp_path):
    np.savez(tmp_path / "inception.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    with pytest.raises(UserError, match=r"statistics \(2048,\) of another network; vgg has 512 features"):
        judge.read_statistics("reference", tmp_path / "inception.npz", colours)
    np.savez(tmp_path / "right.npz", mu=np.zeros(512), sigma=np.eye(512))
    reference = judge.read_statistics("reference", tmp_path / "right.npz", colours)
    assert reference.seen is None and reference.gaussians["pool"].mean.shape == (512,)


def test_the_record_says_what_differs_and_keeps_all(tmp_path, capfd):
    for seed, fid in ((0, 5.0), (0, 5.0), (1, 6.0)):
        record.write(tmp_path, "it", {"fid": fid}, {"samples": {"seed": seed}})
    assert "samples.seed 0 -> 1" in capfd.readouterr().out
    assert [entry["numbers"]["fid"] for entry in record.read(tmp_path)] == [5, 6]
    assert [line.split() for line in report_lines(read_run(tmp_path))[2:]] == [["fid", "6"]]


def test_the_command_judges_folders(tmp_path):
    a, b = make_folder(tmp_path / "a"), make_folder(tmp_path / "b")
    flags = [f"--samples={a}", f"--reference={b}", "--features=vgg", f"--out={tmp_path / 'out'}"]
    done = run("evaluate", *flags)
    assert done.returncode == 0 and "fd_vgg" in done.stdout and "6 samples: a Fréchet distance" in done.stdout
    (entry,) = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert entry["numbers"]["fd_vgg"] > 0 and entry["protocol"]["samples"]["count"] == 6
    refused = run("evaluate", f"--samples={a}", f"--reference={b}", "--features=fid")
    assert refused.returncode == 2 and "--features='fid': allowed are" in refused.stderr


def test_every_kind_of_evaluator_can_be_made():
    assert evaluators.MAKERS.keys() == KINDS.keys()


def test_evaluators_are_checked_by_name(tmp_path):
    config = openmoji_transformer.get_config()
    for given, message in (
        ("samples", "evals.a='samples': it is a group of fields"),
        (dict(kind="sample"), "evals.a.kind='sample': allowed are 'samples'"),
        (dict(kind="reconstructions"), "evals.a.kind='reconstructions': allowed are 'samples'"),
        (dict(kind="samples", num_sample=4), "evals.a.num_sample: there is no such field.*num_samples"),
        (dict(kind="samples", num_samples=1), "evals.a.num_samples=1: it must be at least 2"),
    ):
        config.evals = ConfigDict({"a": given})
        with pytest.raises(UserError, match=message):
            check_fields(config)
    config.evals = ConfigDict({"validation": dict(kind="samples")})
    with pytest.raises(UserError, match=r"evals\.validation: another name"):
        check_fields(config)


def test_the_best_checkpoint_is_found_by_its_number(tmp_path):
    """Among those that are saved, and against the one that is kept."""
    for step in (2, 4, 6):
        (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
    log = tmp_path / "metrics.jsonl"
    records = [(2, "validation", 3.0), (4, "validation", 1.5), (6, "validation", 2.0), (8, "validation", 1.0)]
    records += [(2, "judge", 9.0), (4, "judge", 9.5), (6, "judge", 9.5)]
    lines = [dict(step=step, split=split, nll=value, precision_vgg=value) for step, split, value in records]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert best.find_better(tmp_path, "nll") == 4  # step 8 is not saved
    assert best.find_better(tmp_path, "judge/precision_vgg") == 4  # larger is better, the first of equals
    assert best.find_better(tmp_path, "lpips") is None
    (tmp_path / "best" / "checkpoints" / "4").mkdir(parents=True)
    (tmp_path / "best" / "metrics.jsonl").write_text(json.dumps(lines[1]) + "\n")
    assert best.find_better(tmp_path, "nll") is None
    log.write_text(log.read_text() + json.dumps(dict(step=6, split="validation", nll=1.25)) + "\n")
    assert best.find_better(tmp_path, "nll") == 6
    with pytest.raises(UserError, match=r"checkpoint_best='nl'.*'nll'"):
        best.check("nl", ["nll", "code_use"])


def test_samples_have_the_classes_of_the_reference(transformer_run):
    """As often as it has them; without a split, all alike. No sample is painted twice."""
    painter = taming_jax.Generator.load(transformer_run)
    labels = np.array([2, 0, 2, 2, 0, 2])
    split = Pictures(6, {}, lambda start, stop: np.zeros((stop - start, 16, 16, 3), np.uint8), lambda n: labels[:n])
    turned = split._replace(labels=lambda n: labels[::-1][:n])
    first, second, other = (ask(painter, painter.plan(), n, s) for n, s in ((6, split), (6, turned), (5, split)))
    np.testing.assert_array_equal(first.which, second.which)  # so features that are kept fit both
    assert first.told == second.told != other.told
    for count, pictures, expected in ((4, split, [1, 0, 3]), (9, split, [3, 0, 6]), (7, None, [3, 2, 2])):
        asked = ask(painter, painter.plan(), count, pictures)
        painted = asked.kinds["label"][asked.which]
        assert np.bincount(painted, minlength=3).tolist() == expected
        assert len(set(zip(painted, asked.index, strict=True))) == count
        assert sorted(asked.index[painted == 2]) == list(range(expected[2]))


@pytest.mark.slow
def test_both_stages_are_judged(vq_run, transformer_run, tmp_path):
    """By the command, and while they train; the best checkpoint is a run directory that can be sampled."""
    for source in (vq_run, transformer_run):
        flags = [f"--workdir={tmp_path / source.name}", "--features=vgg", "--num_samples=16"]
        flags += ["--by_class"] if source == transformer_run else []
        shutil.copytree(source, tmp_path / source.name)
        done = run("evaluate", *flags)
        assert done.returncode == 0, done.stderr
    first, second = (
        json.loads((tmp_path / r.name / "evaluation.json").read_text())[0] for r in (vq_run, transformer_run)
    )
    assert {"rfd_vgg", "pfd_vgg", "rprecision_vgg"} <= set(first["numbers"])
    assert 0 < first["numbers"]["rfd_vgg"] != first["numbers"]["pfd_vgg"] > 0
    assert {"fd_vgg", "precision_vgg", "recall_vgg"} <= set(second["numbers"])
    assert second["by_class"].keys() == {"circle", "cross", "square"}
    assert all(numbers["fd_vgg"] > 0 for numbers in second["by_class"].values())
    out = tmp_path / transformer_run.name
    assert second["protocol"]["reference"]["split"] == "train" and (out / "samples_vgg_nearest.png").exists()
    refused = run("evaluate", f"--workdir={vq_run}", "--features=vgg", "--reference=train")
    assert refused.returncode == 2 and "reference: a 'vqgan' run is not judged by it" in refused.stderr

    config, _ = completion.load_config(out)
    config.evals = ConfigDict(dict(few=dict(kind="samples", features="vgg", num_samples=8, reference="validation")))
    config.update(steps=6, eval_every=1, checkpoint_best="few/fd_vgg", keep_checkpoints=1)
    train(config, out)
    records = [r for r in read_records(out / "metrics.jsonl") if r["split"] == "few"]
    assert [r["step"] for r in records] == [5, 6]
    (step,) = checkpoint.steps(out / "best")
    assert step == min(records, key=lambda r: r["fd_vgg"])["step"]
    entries = [entry for entry in record.read(out) if entry["name"] == "few"]
    assert [e["numbers"]["fd_vgg"] for e in entries] == [r["fd_vgg"] for r in records]
    shutil.move(out, tmp_path / "moved")
    painted = taming_jax.Generator.load(tmp_path / "moved" / "best").sample(classes=["cross"], progress=False)
    assert painted.shape == (1, 16, 16, 3)
    assert run("check", str(tmp_path / "moved")).returncode == 0
