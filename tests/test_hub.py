"""Published runs: in folders, in the hub's cache, and what keeps one from a hub that is asked for real."""

import base64
import json
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from safetensors.numpy import load_file, save_file

from taming_jax import checkpoint, completion, config_files, encoded, origin, published, sharding, values
from taming_jax.check import check_copies, check_run
from taming_jax.demo import painted
from taming_jax.errors import ArgumentError, UserError
from taming_jax.generator import Generator
from taming_jax.hub import address, card, runs
from taming_jax.loop import train
from taming_jax.tasks import make_task
from taming_jax.tokenizer import Tokenizer
from tests.tiny import ROOT, changed, mesh_of, run, tiny_transformer

COMMIT = "0123456789" * 4


@pytest.fixture(scope="session")
def published_vq(vq_run, make_once) -> Path:
    """That first stage in a folder."""
    return make_once("published_vq", lambda folder: runs.push(vq_run, str(folder)))


@pytest.fixture(scope="session")
def published_transformer(transformer_run, make_once) -> Path:
    """That second stage in a folder, with its first."""
    return make_once("published_transformer", lambda folder: runs.push(transformer_run, str(folder)))


@pytest.fixture
def cached(published_vq, tmp_path, monkeypatch) -> str:
    """The address of the published first stage, as if it had been downloaded: it lies in the hub's cache."""
    place = tmp_path / "cache" / "models--user--shapes"
    shutil.copytree(published_vq, place / "snapshots" / COMMIT)
    (place / "refs").mkdir()
    for revision in ("main", "v1"):
        (place / "refs" / revision).write_text(COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return "hf://user/shapes"


def weights_of(workdir: Path) -> dict[str, np.ndarray]:
    return checkpoint.by_name(completion.load_run(workdir)[2])


def assert_same(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], name)


def test_a_published_first_stage_gives_the_codes_and_images_of_its_run(vq_run, published_vq):
    ours, theirs = Tokenizer.load(published_vq), Tokenizer.load(vq_run)
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    ids = theirs.encode(images)
    np.testing.assert_array_equal(ours.encode(images), ids)
    np.testing.assert_array_equal(ours.decode(ids), theirs.decode(ids))
    assert (ours.step, ours.config.model) == (theirs.step, theirs.config.model)


def test_a_published_transformer_is_whole_and_knows_its_first_stage(transformer_run, published_transformer):
    config, step, params = completion.load_run(published_transformer)
    stored, _ = completion.load_config(transformer_run)
    assert_same(checkpoint.by_name(params), weights_of(transformer_run))
    assert (step, config.first_stage.digest) == (4, stored.first_stage.digest)
    assert Path(config.first_stage.workdir).resolve() == (published_transformer / "first_stage").resolve()
    generator = Generator.load(published_transformer)  # which compares that digest
    assert generator.class_names == ("circle", "cross", "square")
    assert check_run(published_transformer) == [] and check_copies(published_transformer) == []


def test_the_page_offers_published_runs(published_transformer, published_vq, tmp_path):
    assert painted.find_runs(published_transformer) == {published_transformer.name: published_transformer}
    (tmp_path / "mine").symlink_to(published_transformer)
    (tmp_path / "first").symlink_to(published_vq)
    assert painted.find_runs(tmp_path) == {"mine": tmp_path / "mine"}


def test_averages_are_published_in_place_of_their_weights(vq_run, tmp_path):
    config, step = completion.load_config(vq_run)
    state = checkpoint.load_nets(vq_run, step)
    average = jax.tree.map(lambda x: x + 1, state.params["gen"])
    state = state.replace(extra={**state.extra, "gen": {**state.extra["gen"], "ema": average}})
    config.ema_decay = 0.9
    with checkpoint.open_manager(tmp_path / "run") as manager:
        checkpoint.save(manager, state, 0, config)
    runs.push(tmp_path / "run", str(tmp_path / "out"))
    assert_same(weights_of(tmp_path / "out"), checkpoint.by_name(average))
    assert not [name for name in published.shapes(tmp_path / "out") if "ema" in name or "disc" in name]


def test_bfloat16_is_half_as_large_and_a_transformer_knows_its_rounded_first_stage(
    transformer_run, published_transformer, tmp_path
):
    runs.push(transformer_run, str(tmp_path / "half"), "bfloat16")
    for stage in (".", "first_stage"):
        half, whole = (f / stage / published.WEIGHTS for f in (tmp_path / "half", published_transformer))
        assert 0.45 < half.stat().st_size / whole.stat().st_size < 0.6
        exact = weights_of(whole.parent)
        rounded = {name: x.astype(published.FLOATS["bfloat16"]).astype(np.float32) for name, x in exact.items()}
        assert_same(weights_of(half.parent), rounded)
    Generator.load(tmp_path / "half")
    digests = [completion.load_config(f)[0].first_stage.digest for f in (tmp_path / "half", published_transformer)]
    assert digests[0] != digests[1]
    assert "rounded to bfloat16" in (tmp_path / "half" / "README.md").read_text()


@pytest.mark.slow
def test_a_pulled_run_is_evaluated_and_trained_further_with_a_new_discriminator(vq_run, published_vq, tmp_path):
    workdir = tmp_path / "run"
    runs.pull(str(published_vq), workdir)
    assert check_run(workdir) == [] and (workdir / "reconstructions.png").exists()
    assert_same(weights_of(workdir), weights_of(vq_run))
    config, _ = completion.load_config(workdir)
    config.mesh = mesh_of()
    task = make_task(config)._replace(load_frozen=dict)  # LPIPS takes seconds
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    with jax.set_mesh(mesh), checkpoint.open_manager(workdir, read_only=True) as manager:
        state, next_batch = checkpoint.init_or_restore(manager, task, jax.random.key(0), mesh)
    assert (int(state.step), next_batch) == (4, 4)
    like = jax.eval_shape(task.init, jax.random.key(0))
    assert jax.tree.structure(state.replace(frozen={})) == jax.tree.structure(like)
    assert_same(checkpoint.by_name(jax.device_get(state.params["gen"])), weights_of(vq_run))


def test_a_pulled_transformer_has_its_first_stage(published_transformer, transformer_run, tmp_path):
    shutil.copytree(transformer_run / "first_stage", tmp_path / "run.part" / "first_stage")  # of an interrupted pull
    runs.pull(str(published_transformer), tmp_path / "run")
    assert {path.name for path in tmp_path.iterdir()} == {"run"}
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    assert check_run(moved) == [] and check_copies(moved) == []
    assert_same(weights_of(moved), weights_of(transformer_run))
    Generator.load(moved)


def test_new_runs_begin_with_a_published_one(published_vq, published_transformer, picture_folder):
    for folder, net in ((published_vq, "gen"), (published_transformer, "gpt")):
        config = changed(config_files.load(f"finetune:{folder}"), data__path=str(picture_folder))
        config = completion.complete(config)
        config.data.class_names = ("circle", "cross", "square")
        shapes = jax.eval_shape(make_task(config).init, jax.random.key(0))
        taken = origin.load(config, completion.find_origin(config), shapes)
        assert taken.keys() == {net}
        assert_same(checkpoint.by_name(taken[net]), weights_of(folder))


def test_a_transformer_learns_on_a_published_first_stage_by_its_address(cached, published_vq, tmp_path, capsys):
    config = completion.complete(tiny_transformer(f"{cached}@v1"))
    kept = completion.keep_stages(config, tmp_path / "run")
    assert kept.first_stage.origin == f"{cached}@v1"
    assert kept.first_stage.digest == checkpoint.digest(completion.load_run(published_vq)[2])
    assert checkpoint.steps(tmp_path / "run" / "first_stage") == [4]
    stored = ConfigDict(checkpoint.from_relative(tmp_path, checkpoint.relative_to(tmp_path, kept.to_dict())))
    assert stored.first_stage.origin == f"{cached}@v1"
    shutil.rmtree(tmp_path / "cache")  # a run that goes on has its own copy
    assert completion.complete(tiny_transformer(f"{cached}@v1"), stored).first_stage.digest == kept.first_stage.digest


def test_codes_of_a_published_first_stage(cached, picture_folder, tmp_path):
    config = completion.complete(changed(tiny_transformer(cached), data__path=str(picture_folder)))
    encoded.encode(config, tmp_path / "codes", 1, 16)
    assert (tmp_path / "codes" / "codes.json").exists()


@pytest.mark.parametrize("revision", ["", "@main", "@v1", f"@{COMMIT}"])
def test_an_address_leads_to_the_cache_without_a_network(cached, revision):
    assert Tokenizer.load(f"{cached}{revision}").step == 4
    assert address.find(f"{cached}{revision}").name == COMMIT


def damage(file: Path, at: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 16
    file.write_bytes(content)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-5])


def change(file: Path, **fields) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def store(folder: Path, *names: str, dtype: str | None = None) -> None:
    """Writes its weights in another dtype, or with arrays of more names."""
    arrays = {name: x.astype(dtype or x.dtype) for name, x in load_file(folder / published.WEIGHTS).items()}
    save_file(arrays | {name: np.zeros((), np.float32) for name in names}, folder / published.WEIGHTS)


DAMAGE = {
    "a bit": (
        lambda f: damage(f / published.WEIGHTS, -(2**17)),
        r"damaged \(params/gen/\S+ is not what was written\)",
    ),
    "cut": (lambda f: cut(f / published.WEIGHTS), "model.safetensors is damaged"),
    "no weights": (lambda f: (f / published.WEIGHTS).unlink(), "its model.safetensors is missing"),
    "no config": (lambda f: (f / published.CONFIG).unlink(), "holds no checkpoint"),
    "no JSON": (lambda f: cut(f / published.CONFIG), "config.json cannot be read, it is damaged"),
    "other config": (
        lambda f: change(f / published.CONFIG, config={"task": "vqgan"}),
        "config is not what was written",
    ),
    "later": (lambda f: change(f / published.CONFIG, format="taming_jax/9"), "'taming_jax/9'; this version reads"),
    "no sums": (lambda f: change(f / published.CONFIG, sums=None), "'sums' is None"),
    "no step": (lambda f: change(f / published.CONFIG, step="4"), "'step' is '4'"),
    "large step": (lambda f: change(f / published.CONFIG, step=2**40), "'step' is 1099511627776"),
    "half": (lambda f: store(f, dtype="float16"), "model.safetensors is damaged.*, of F16, is no array of a run"),
    "bytes": (lambda f: store(f, dtype="int8"), "model.safetensors is damaged.*, of I8, is no array of a run"),
    "whole numbers": (lambda f: store(f, dtype="int32"), "'params/.*, of I32, is no array of a run"),
    "array and group": (lambda f: store(f, "params/gen/conv_out"), "model.safetensors is damaged"),
    "array of a net": (lambda f: store(f, "params/gen"), "'params/gen', of F32, is no array of a run"),
    "array of extra": (lambda f: store(f, "extra"), "'extra', of F32, is no array of a run"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named(kind, published_vq, tmp_path):
    folder = shutil.copytree(published_vq, tmp_path / "run")
    harm, message = DAMAGE[kind]
    harm(folder)
    with pytest.raises(UserError, match=message):
        Tokenizer.load(folder)
    assert not kind == "a bit" or check_run(folder) == [4]


def test_a_published_transformer_names_its_first_stage(published_transformer, tmp_path):
    folder = shutil.copytree(published_transformer, tmp_path / "run")
    described = json.loads((folder / published.CONFIG).read_text())
    described["config"]["first_stage"]["digest"] = ""
    described["sums"]["config"] = checkpoint.sum_json(described["config"])
    change(folder / published.CONFIG, **described)
    with pytest.raises(UserError, match=r"config\.json is damaged: first_stage\.digest is missing"):
        completion.load_config(folder)


def test_pictures_alone_lie_beside_a_pulled_run(published_vq, tmp_path):
    folder = shutil.copytree(published_vq, tmp_path / "source")
    (tmp_path / "secret.txt").write_text("mine")
    shutil.copy(folder / runs.PICTURES / "reconstructions.png", tmp_path / "other.png")
    for name, other in {"a.png": "secret.txt", "b.png": "other.png"}.items():
        (folder / runs.PICTURES / name).symlink_to(tmp_path / other)
    for name in ("c.png", "metrics.jsonl", "starts.json"):
        (folder / runs.PICTURES / name).write_text("no picture")
    (folder / "evaluation.json").symlink_to(tmp_path / "secret.txt")
    runs.pull(str(folder), tmp_path / "run")
    assert {p.name for p in (tmp_path / "run").iterdir()} == {"README.md", "checkpoints", "reconstructions.png"}
    (tmp_path / "run" / "link.png").symlink_to(tmp_path / "other.png")
    (tmp_path / "run" / "text.gif").write_text("no picture")
    assert runs.read(tmp_path / "run").pictures == [tmp_path / "run" / "reconstructions.png"]


def test_paths_and_services_stay_at_home(published_transformer, vq_run, tmp_path):
    config = completion.load_config(vq_run)[0]
    config.update(tracker="wandb:secret", init_from=str(tmp_path), checkpoint_best="lpips")
    told = {"name": "a/b", "numbers": {"fid": 1.0}, "protocol": {"samples": {"run": {"step": 4}, "path": "/a/b"}}}
    texts = [f.read_text() for f in published_transformer.rglob("*") if f.suffix in (".json", ".md")]
    texts += [
        json.dumps(published.at_home(config.to_dict())),
        json.dumps(card.without_folders(told)),
    ]
    assert not [text for text in texts if re.search(r'"/\w|secret|/tmp', text)]


def test_the_card_says_what_it_is_and_where_its_numbers_come_from(published_transformer, transformer_run, tmp_path):
    from huggingface_hub import ModelCard

    found = ModelCard.load(published_transformer / "README.md")
    assert found.data.library_name == "taming_jax" and found.data.license is None
    assert "8x8 codes of 32, for images of 16x16 pixels" in found.text and "circle, cross, square" in found.text
    assert all((published_transformer / name).exists() for name in re.findall(r"!\[.*\]\((.*)\)", found.text))
    names = [result.metric_name for result in found.data.eval_results]
    assert "validation nll" in names and "| validation nll |" in found.text
    protocol = {"network": {"name": "vgg"}, "samples": {"count": 7, "kind": "samples", "run": {"step": 4}}}
    judged = [{"name": "samples_vgg", "numbers": {"fd_vgg": 3.0}, "protocol": protocol}]
    judged += [{"name": "validation", "numbers": {"fd | of all": 2.0}, "protocol": {}}]
    numbers = card.Told({"nll": 1.0}, judged)
    config = completion.load_config(transformer_run)[0]
    config.data.name = "openmoji/px64"
    asked = dict(license=None, dtype="float32", size=1, began="")
    text = card.write("x", "hf://user/x", config, 4, numbers, [], **asked)
    assert "| validation nll | 1 | the whole validation split, step 4 |" in text and "pipeline_tag" not in text
    assert "| validation fd / of all | 2 | by its protocol, step 4 |" in text
    assert "| samples_vgg fd_vgg | 3 | samples: 7 samples; network vgg, step 4 |" in text
    assert "license: cc-by-sa-4.0" in text and "OpenMoji" in text and 'Generator.load("hf://user/x")' in text
    assert "license: mit" in card.write("x", "y", config, 4, numbers, [], **asked | dict(license="mit"))


MISTAKES = {
    "no repository": ("hf://user", "written hf://user/name"),
    "three parts": ("hf://user/name/file", "written hf://user/name"),
    "no revision": ("hf://user/name@", "written hf://user/name"),
    "one slash": ("hf:/user/name", "written hf://user/name"),
    "its page": ("https://huggingface.co/user/name", "written hf://user/name"),
    "characters": ("hf://user/na--me", "Cannot have -- or .. in repo_id; an address"),
    "not there": ("hf://user/nothing", "hf://user/nothing cannot be reached.*HF_HUB_OFFLINE is set"),
    "other revision": ("hf://user/shapes@v2", "hf://user/shapes@v2 cannot be reached"),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_what_is_wrong_with_an_address(kind, cached):
    given, message = MISTAKES[kind]
    with pytest.raises(UserError, match=message):
        Tokenizer.load(given)


def test_another_repository_is_none_of_ours(cached, tmp_path):
    snapshot = tmp_path / "cache" / "models--user--shapes" / "snapshots" / COMMIT
    (snapshot / published.CONFIG).write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match=r"hf://user/shapes is no published run: its config.json is not of taming_jax"):
        address.find(cached)


def test_nothing_is_written_over(vq_run, published_vq, tmp_path):
    (tmp_path / "file").write_text("mine")
    for taken in (tmp_path, tmp_path / "file", published_vq):
        with pytest.raises(ArgumentError, match="is not empty; name another folder"):
            runs.push(vq_run, str(taken))
        with pytest.raises(UserError, match=r"already|is a file|is not empty"):
            runs.pull(str(published_vq), taken)
    with pytest.raises(UserError, match="already holds a run"):
        runs.pull(str(published_vq), vq_run)
    with pytest.raises(UserError, match="there is no such folder"):
        runs.pull(str(tmp_path / "nothing"), tmp_path / "new")
    with pytest.raises(UserError, match=r"it has no config\.json of taming_jax"):
        runs.pull(str(vq_run), tmp_path / "new")
    with pytest.raises(ArgumentError, match="leave @v1 out"):
        runs.push(vq_run, "hf://user/name@v1")
    for asked in ("private", "update"):
        with pytest.raises(ArgumentError, match=f"{asked}: it is for a repository on the hub"):
            runs.push(vq_run, str(tmp_path / "new"), **{asked: True})
    assert not (tmp_path / "new").exists() and (tmp_path / "file").read_text() == "mine"


def test_a_published_run_is_not_trained_in_its_folder(published_vq, picture_folder):
    config = config_files.load(f"stored:{published_vq}")
    with config.unlocked():
        del config.run
    changed(config, steps=8, data__path=str(picture_folder))
    before = sorted(published_vq.iterdir())
    with pytest.raises(UserError, match="taming hub pull --from="):
        train(config, published_vq)
    assert sorted(published_vq.iterdir()) == before


def test_a_published_run_is_not_evaluated_in_its_folder(published_vq, run_here, capsys):
    before = sorted(published_vq.iterdir())
    with pytest.raises(SystemExit, match="2"):
        run_here("taming_jax.evaluate", f"--workdir={published_vq}", "--features=vgg")
    assert "taming hub pull --from=" in capsys.readouterr().err and sorted(published_vq.iterdir()) == before


@pytest.mark.parametrize(
    "given, how", [("hf://user/name", "taming hub pull"), ("https://huggingface.co/user/name/x.pt", "download")]
)
def test_a_path_of_this_machine_is_no_address(given, how):
    with pytest.raises(UserError, match=how):
        values.path("ckpt", given)


def test_the_command_tells_on_one_line_that_there_is_no_network(tmp_path):
    done = run("hub", "pull", "--from=hf://user/nothing", f"--workdir={tmp_path / 'x'}")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "error: hf://user/nothing cannot be reached" in done.stderr and "HF_HUB_OFFLINE" in done.stderr


REFUSALS = {
    "new": (404, "RepoNotFound"),
    "gated": (403, "GatedRepo"),
    "private": (401, "RepoNotFound"),
    "revision": (404, "RevisionNotFound"),
    "other": (404, "EntryNotFound"),
}


class Hub(BaseHTTPRequestHandler):
    """Answers the hub's own client: refuses some, gives a published run, and takes a new one.

    folder: of user/shapes. asked, taken: of the new repository, its files by their names.
    """

    folder: Path
    asked: dict
    taken: dict[str, bytes]

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        refusals = {} if self.asked else REFUSALS  # the new repository is there as soon as it is asked for
        status, code = next((code for name, code in refusals.items() if f"/{name}" in path), (200, ""))
        files = {str(f.relative_to(self.folder)): f for f in self.folder.rglob("*") if f.is_file()}
        tree = [dict(type="file", path=name, size=f.stat().st_size, oid=name) for name, f in files.items()]
        body = json.dumps(tree if "/tree/" in path else dict(name="user", id="user/taken", private=False, sha=COMMIT))
        name = path.partition(f"/shapes/resolve/{COMMIT if COMMIT in path else 'main'}/")[2]
        if name:
            self.answer(200, files[name].read_bytes(), ETag=f'"{name}"', X_Repo_Commit=COMMIT)
        else:
            self.answer(status, body.encode(), X_Error_Code=code)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.endswith("/repos/create"):
            self.asked.update(json.loads(body))
        elif "/preupload/" in self.path:
            files = [file["path"] for file in json.loads(body)["files"]]
            modes = [dict(path=file, uploadMode="regular", shouldIgnore=False) for file in files]
            return self.answer(200, json.dumps(dict(files=modes)).encode())
        elif "/commit/" in self.path:
            lines = [json.loads(line) for line in body.splitlines()]
            files = [line["value"] for line in lines if line["key"] == "file"]
            self.taken.update({file["path"]: base64.b64decode(file["content"]) for file in files})
        url = f"http://{self.headers['Host']}/user/new"
        self.answer(200, json.dumps(dict(url=url, commitUrl=f"{url}/commit/{COMMIT}", commitOid=COMMIT)).encode())

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body if self.command != "HEAD" else b"")

    def log_message(self, *_) -> None:
        pass


ASK = """
import sys
from pathlib import Path
from taming_jax.errors import UserError
from taming_jax.hub import address, runs
for repo in ("gated", "private", "revision", "other"):
    try:
        address.find(f"hf://user/{repo}")
    except UserError as e:
        print(e)
for asked in ({}, dict(private=True, update=True)):
    try:
        runs.push(Path(sys.argv[1]), "hf://user/taken", **asked)
    except UserError as e:
        print(e)
runs.pull("hf://user/shapes", Path(sys.argv[2]))
runs.push(Path(sys.argv[1]), "hf://user/new", private=True)
"""


def test_a_hub_refuses_gives_and_takes(vq_run, published_vq, tmp_path, monkeypatch):
    Hub.folder, Hub.asked, Hub.taken = published_vq, {}, {}
    server = HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_TOKEN": "hf_x"}
    environment |= {"HF_HOME": str(tmp_path), "NO_PROXY": "*"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    try:
        done = subprocess.run(
            [sys.executable, "-c", ASK, str(vq_run), str(tmp_path / "run")],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
        )
    finally:
        server.shutdown()
    expected = [
        r"hf://user/gated is given to those alone who accept its terms",
        r"hf://user/private: there is no such repository, or it is private",
        r"hf://user/revision: the repository has no such revision",
        r"hf://user/other is no published run of taming_jax: it has no config.json",
        r"hf://user/taken is there already; --update",
        r"hf://user/taken is public, and --private",
    ]
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("hf://")]
    for line, pattern in zip(lines, expected, strict=True):
        assert re.match(pattern, line), line
    assert_same(weights_of(tmp_path / "run"), weights_of(vq_run))
    assert (tmp_path / "run" / "reconstructions.png").exists()
    assert (Hub.asked["name"], Hub.asked["visibility"]) == ("new", "private")
    assert Hub.taken.keys() == {str(f.relative_to(published_vq)) for f in published_vq.rglob("*") if f.is_file()}
    for name in (published.CONFIG, published.WEIGHTS):
        assert Hub.taken[name] == (published_vq / name).read_bytes()


def test_nets_that_come_along_paint_and_are_moved_aside_by_a_folder_of_their_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    generator, tokenizer = Generator.load("openmoji"), Tokenizer.load("openmoji_tokenizer")
    assert len(generator.class_names) == 9 and tokenizer.config.quantizer.codebook_size == 1024
    own = completion.load_run(address.find("openmoji") / "first_stage")[2]
    assert checkpoint.digest(own) == generator.config.first_stage.digest
    images = generator.sample(2, classes="Flags", progress=False)
    assert images.shape == (2, 48, 48, 3) and (images[:, :2] > 240).all()  # a flag on white paper
    ids = tokenizer.encode(images)
    # What it has painted stays about the same through codes and back.
    assert np.abs(tokenizer.decode(ids).astype(int) - images).mean() < 20
    (tmp_path / "openmoji").mkdir()
    with pytest.raises(UserError, match="openmoji"):
        Generator.load("openmoji")
    card_text = (ROOT / "taming_jax/nets/openmoji/README.md").read_text()
    assert "cc-by-sa-4.0" in card_text and "OpenMoji" in card_text
