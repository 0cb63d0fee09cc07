"""launch/: the scripts against a pretended cloud and a pretended SLURM, the files for GKE against schemas."""

import importlib.metadata
import importlib.util
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.tiny import ROOT

LAUNCH = ROOT / "launch"
SLICE = "--name=my-slice --zone=us-west4-a --type=v5litepod-16 --bucket=my-bucket".split()
TRAIN = ["--config=configs/openmoji_vq.py", "--workdir=/bucket/runs/vq", "--config.data.path=/bucket/my pictures"]
SYSTEM = """bash cat cmp cp date dirname env grep id kill ln mkdir mktemp readlink rm sed setsid sleep tail tar tee gzip
""".split()

# Answers as gcloud does, of a cloud that has one slice. cloud.json says what is to come; ssh runs on its hosts, if any.
GCLOUD = f"""#!{sys.executable} -IS
import json, os, shutil, signal, subprocess, sys
from pathlib import Path

file = Path(os.environ["CLOUD"])
cloud, arguments = json.loads(file.read_text()), sys.argv[1:]
cloud["calls"].append(arguments)
group, verb = arguments[3:5]
options = dict(a[2:].split("=", 1) for a in arguments if a.startswith("--") and "=" in a)
code = 0


def fail(message):
    file.write_text(json.dumps(cloud))
    sys.exit("ERROR: (gcloud.compute.tpus." + group + "." + verb + ") " + message + "\\n\\nTo learn more, ask.")


if verb != "create" and cloud.get("offline", 0):
    cloud["offline"] -= 1
    fail("There was a problem reaching the network")
if verb == "create":
    if cloud["states"]:
        fail("ALREADY_EXISTS: Resource already exists")
    if not cloud["requests"]:
        fail("Quota limit has been exceeded")
    cloud["states"] = cloud["requests"].pop(0)
    cloud["offline"] = cloud.get("offline_later", 0)
elif not cloud["states"]:
    fail("NOT_FOUND: Resource 'my-slice' was not found")
elif verb == "delete":
    cloud["states"] = []
elif verb == "describe":
    state = cloud["states"][0]
    of_node = state in ("READY", "REPAIRING", "PREEMPTED", "TERMINATED")
    if "failedData" in options["format"]:
        print("there is no such runtime version")
    elif "acceleratorType" in options["format"]:
        print(cloud["type"])
    else:
        print("ACTIVE" if of_node and group == "queued-resources" else state)
        if of_node == (group == "tpu-vm") and len(cloud["states"]) > 1:
            cloud["states"].pop(0)
elif verb == "scp":
    for host in cloud["hosts"]:
        shutil.copy(arguments[5], host["HOME"])
elif cloud["hosts"]:
    processes = [
        subprocess.Popen(["bash", "-c", options["command"]], cwd=host["HOME"], env={{**os.environ, **host}})
        for host in cloud["hosts"]
    ]
    code = next((p.returncode for p in processes if p.wait()), 0)
elif " train " in options["command"]:
    outcome = cloud["trainings"].pop(0)
    if outcome == "endless":
        file.write_text(json.dumps(cloud))
        print("step 1", flush=True)
        signal.pause()
    if isinstance(outcome, str):
        cloud["states"], outcome = outcome.split(), 255
    code = outcome
file.write_text(json.dumps(cloud))
sys.exit(code)
"""

# What a host of a slice has: the service that tells its number, a system to install into, buckets to mount.
HOST = dict(
    curl='case "$*" in *agent-worker-number) echo "$NUMBER" ;; *) echo key ;; esac',
    python3="""echo "$*" >>"$HOME/installed"
case "$*" in
  "-m uv venv "*) mkdir -p "${!#}/bin" && cp "$TOOLS/trainer" "${!#}/bin/python" ;;
  "-m uv pip install "*) [ ! -e "$HOME/no-network" ] || exit 2 ;;
esac""",
    sudo="""[ "$1" != tee ] || cat >/dev/null
case "$*" in *"install -y gcsfuse") cp "$TOOLS/driver" "$HOME/bin/gcsfuse" ;; esac""",
    findmnt='cat "$HOME/mounted" 2>/dev/null',
    driver='echo "${@: -2:1}" >"$HOME/mounted"',
    # The training itself: what it was called with, a line, an end that the test decides.
    trainer=f"""#!{sys.executable} -IS
import os, signal, sys
from pathlib import Path

home = Path(os.environ["HOME"])
assert os.environ["JAX_COMPILATION_CACHE_DIR"].startswith("/bucket/")  # outlives the slice
with (home / "trained").open("a") as file:
    print(*sys.argv[1:], sep="\\n", file=file)
signal.signal(signal.SIGINT, lambda *_: os._exit(130))
print("step 1 on host", os.environ["NUMBER"], flush=True)
if (home / "gate").exists():
    signal.pause()
sys.exit(int((home / "code").read_text()))
""",
)


def write_tools(folder: Path, tools: dict[str, str]) -> Path:
    """A folder for PATH with these scripts, and with the few programs of the system that ours may use."""
    folder.mkdir()
    for name, content in tools.items():
        (folder / name).write_text(content if content.startswith("#!") else f"#!/bin/bash\n{content}\n")
        (folder / name).chmod(0o755)
    for name in SYSTEM:
        if found := shutil.which(name):
            (folder / name).symlink_to(found)
    return folder


class Cloud:
    """A pretended cloud with a slice, or without one, and a terminal from which launch/tpu_pod.sh is started."""

    def __init__(self, folder: Path, states=(), requests=(), trainings=(), type="v5litepod-16", hosts=0, **more):
        self.file, self.hosts = folder / "cloud.json", []
        tools = write_tools(folder / "bin", {"gcloud": GCLOUD} | (HOST if hosts else {}))
        for number in range(hosts):
            home = folder / f"host{number}"
            (home / "bin").mkdir(parents=True)
            (home / "code").write_text("0")
            names = dict(HOME=str(home), TOOLS=str(tools), NUMBER=str(number), PATH=f"{home / 'bin'}:{tools}")
            self.hosts.append(names)
        content = dict(states=states, requests=requests, trainings=trainings, type=type, hosts=self.hosts, calls=[])
        self.file.write_text(json.dumps(content | more))
        self.env = dict(PATH=str(tools), CLOUD=str(self.file), HOME=str(folder))

    def start(self, *options: str) -> subprocess.Popen:
        command = [LAUNCH / "tpu_pod.sh", *SLICE, "--poll=0", *options, "--", *TRAIN]
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        # Tests that a shell runs in the background ignore Ctrl-C, and so would the script; what they handle, it heeds.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        return subprocess.Popen(command, env=self.env, start_new_session=True, **pipes)

    def run(self, *options: str) -> tuple[int, str, str]:
        """Exit code, what was printed, and what went to the standard error."""
        process = self.start(*options)
        try:
            printed, errors = process.communicate(timeout=60)
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
        return process.returncode, printed, errors

    def did(self) -> list[str]:
        """What gcloud was asked to do, in order: ssh is 'setup' or 'train'."""
        calls = json.loads(self.file.read_text())["calls"]
        verbs = [re.search(r"tpu_worker.sh (\w+)|$", " ".join(call))[1] or call[4] for call in calls]
        return [verb for verb in verbs if verb != "describe"]

    def on_host(self, *arguments: str, attempt: str = "1") -> subprocess.Popen:
        """launch/tpu_worker.sh on host 0, from an attempt's folder."""
        home = Path(self.hosts[0]["HOME"])
        folder = home / "taming_jax" / attempt / "launch"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(LAUNCH / "tpu_worker.sh", folder)
        (home / "taming_jax" / attempt / "requirements.txt").write_text("jax\n")
        command = ["bash", str(folder / "tpu_worker.sh"), *arguments]
        output = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        return subprocess.Popen(command, cwd=home, env=self.hosts[0], **output)


@pytest.mark.parametrize("script", [f.name for f in LAUNCH.iterdir() if f.suffix in (".sh", ".sbatch")])
def test_shellcheck(script):
    shellcheck = Path(sysconfig.get_path("scripts")) / "shellcheck"
    done = subprocess.run([shellcheck, LAUNCH / script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


QUEUE = ["WAITING_FOR_RESOURCES", "WAITING_FOR_RESOURCES", "PROVISIONING", "REPAIRING", "READY"]
ONCE = ["create", "scp", "setup", "train"]


def test_a_slice_is_requested_and_deleted(tmp_path):
    """The states are shown as they change; the flags arrive as they were given."""
    cloud = Cloud(tmp_path, requests=[QUEUE], trainings=[0])
    code, printed, _ = cloud.run("--spot", "--delete")
    assert code == 0 and cloud.did() == [*ONCE, "delete"]
    states = re.findall(r"my-slice is (\w+)", printed)
    assert states == ["MISSING", "WAITING_FOR_RESOURCES", "PROVISIONING", "REPAIRING", "READY"]
    assert "costing money" not in printed
    calls = json.loads(cloud.file.read_text())["calls"]
    (create,) = [call for call in calls if call[4] == "create"]
    assert {"--node-id=my-slice", "--accelerator-type=v5litepod-16", "--spot"} <= set(create)
    assert "--runtime-version=v2-alpha-tpuv5-lite" in create
    assert all("--zone=us-west4-a" in call for call in calls)
    command = calls[-2][-2].removeprefix("--command=")
    assert shlex.split(command)[3:] == TRAIN


@pytest.mark.parametrize("how", [75, "SUSPENDING SUSPENDED", "FAILED", "PREEMPTED", "TERMINATED"])
def test_a_slice_that_is_taken_away_is_replaced(how, tmp_path):
    cloud = Cloud(tmp_path, requests=[["READY"], ["READY"]], trainings=[how, 0])
    code, printed, _ = cloud.run()
    assert code == 0 and cloud.did() == [*ONCE, "delete", *ONCE]
    assert printed.endswith("gcloud compute tpus queued-resources delete my-slice --zone=us-west4-a --force\n")


@pytest.mark.parametrize(("code", "said"), [(2, "not tried again"), (130, "stopped by hand")])
def test_what_does_not_go_away_by_itself_is_not_tried_again(code, said, tmp_path):
    cloud = Cloud(tmp_path, requests=[["READY"]], trainings=[code])
    ended, printed, _ = cloud.run()
    assert ended == code and cloud.did() == ONCE
    assert said in printed and "goes on costing money" in printed


def test_crashes_are_tried_again_a_few_times(tmp_path):
    cloud = Cloud(tmp_path, requests=[["READY"]], trainings=[1, 134, 139, 1, 0])
    code, printed, _ = cloud.run("--delete")
    assert code == 1 and cloud.did() == [*ONCE, *ONCE[1:] * 3, "delete"]
    assert "code 134; trying again, 2 of 3" in printed and "after 3 other failures" in printed


def test_broken_connections_are_no_failures(tmp_path):
    cloud = Cloud(tmp_path, requests=[["READY"]], trainings=[255] * 5 + [0])
    code, _, _ = cloud.run()
    assert code == 0 and cloud.did().count("train") == 6 and cloud.did().count("create") == 1


def test_a_slice_that_is_there_is_used(tmp_path):
    cloud = Cloud(tmp_path, states=["REPAIRING", "READY"], trainings=[0])
    code, _, _ = cloud.run()
    assert code == 0 and cloud.did() == ONCE[1:]


def test_a_slice_of_another_type_is_left_alone(tmp_path):
    cloud = Cloud(tmp_path, states=["READY"], type="v4-8")
    code, _, errors = cloud.run("--delete")
    assert code == 2 and cloud.did() == [] and "my-slice is a v4-8, not a v5litepod-16" in errors


def test_what_an_earlier_slice_left_is_removed(tmp_path):
    cloud = Cloud(tmp_path, states=["SUSPENDED"], requests=[["READY"]], trainings=[0])
    code, _, _ = cloud.run()
    assert code == 0 and cloud.did() == ["delete", *ONCE]


def test_requests_that_fail_come_to_an_end(tmp_path):
    cloud = Cloud(tmp_path, requests=[["PROVISIONING", "FAILED"]] * 5)
    code, printed, _ = cloud.run()
    assert code == 1 and cloud.did().count("create") == 4
    assert "there is no such runtime version" in printed


def test_a_refused_request_is_told(tmp_path):
    cloud = Cloud(tmp_path)
    code, _, errors = cloud.run()
    assert code == 1 and cloud.did() == ["create"] and "Quota limit" in errors


def test_gcloud_that_cannot_tell_is_no_missing_slice(tmp_path):
    """At the start it ends; later it is waited for."""
    (tmp_path / "start").mkdir()
    cloud = Cloud(tmp_path / "start", offline=1)
    code, printed, _ = cloud.run()
    assert code == 1 and cloud.did() == [] and "There was a problem reaching the network" in printed
    (tmp_path / "later").mkdir()
    cloud = Cloud(tmp_path / "later", requests=[["READY"]], trainings=[0], offline_later=2)
    code, printed, _ = cloud.run()
    assert code == 0 and cloud.did() == ONCE and printed.count("UNREACHABLE") == 1


def test_ctrl_c_leaves_the_slice_and_says_so(tmp_path):
    cloud = Cloud(tmp_path, requests=[["READY"]], trainings=["endless"])
    process = cloud.start("--delete")
    for line in process.stdout:
        if line == "step 1\n":
            break
    os.killpg(process.pid, signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and cloud.did() == ONCE
    assert "what my-slice does goes on" in printed and "delete my-slice --zone=us-west4-a --force" in printed


def test_a_dry_run_needs_no_cloud(tmp_path):
    tools = write_tools(tmp_path / "bin", {})
    command = [LAUNCH / "tpu_pod.sh", *SLICE, "--delete", "--dry-run", "--", *TRAIN]
    done = subprocess.run(command, env=dict(PATH=str(tools)), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    shown = [shlex.split(line) for line in done.stderr.splitlines()]
    assert [line[:2] for line in shown] == [["+", "tar"], *[["+", "gcloud"]] * 6]
    assert [line[6] for line in shown[1:]] == ["create", "describe", "scp", "ssh", "ssh", "delete"]


def test_commands_of_the_readme_are_accepted(tmp_path):
    tools = write_tools(tmp_path / "bin", {})
    text = (LAUNCH / "README.md").read_text() + (LAUNCH / "tpu_pod.sh").read_text().replace("\n# ", "\n")
    commands = re.findall(r"^ *(launch/tpu_pod.sh (?:.*\\\n)*.*)", text, re.MULTILINE)
    assert len(commands) >= 2
    for command in commands:
        arguments = shlex.split(command.replace("\\\n", ""))[1:]
        done = subprocess.run(
            [LAUNCH / "tpu_pod.sh", "--dry-run", *arguments],
            env=dict(PATH=str(tools)),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--name": None}, "--name= is missing"),
        ({"--zone": None}, "--zone= is missing"),
        ({"--type": None}, "--type= is missing"),
        ({"--bucket": None}, "--bucket= is missing"),
        ({"--spott": ""}, "unknown option --spott=; there are --name="),
        ({"--type": "v5e-16"}, "Cloud TPU's name for it is v5litepod-16"),
        ({"--type": "a100-8"}, "v4-*, v5litepod-*, v5p-* or v6e-*"),
        ({"--bucket": "gs://my-bucket"}, "without gs://"),
        ({"--poll": "soon"}, "a whole number of seconds"),
        ({"--config": "configs/openmoji.py"}, "a file in configs/"),
        ({"--workdir": "runs/vq"}, "a folder below /bucket/"),
        ({"--workdir": None}, "a folder below /bucket/"),
    ],
)
def test_bad_input_gets_one_line(change, message, tmp_path):
    cloud = Cloud(tmp_path)
    given = [f"--{name}={value}" for name, value in (a[2:].split("=") for a in SLICE)]
    options, flags = dict(a.split("=", 1) for a in given), dict(a.split("=", 1) for a in TRAIN)
    for name, value in change.items():
        (flags if name in flags else options)[name] = value
    command = [f"{name}={value}" for name, value in options.items() if value is not None]
    command += ["--", *(f"{name}={value}" for name, value in flags.items() if value is not None)]
    done = subprocess.run([LAUNCH / "tpu_pod.sh", *command], env=cloud.env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and message in done.stderr
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: ") and cloud.did() == []


def test_two_hosts_are_set_up_and_train(tmp_path):
    """The whole way, on hosts of this machine: a crash, and from the second attempt on nothing is installed again."""
    cloud = Cloud(tmp_path, requests=[["READY"]], hosts=2)
    first, second = (Path(host["HOME"]) for host in cloud.hosts)
    (second / "code").write_text("134")
    code, printed, errors = cloud.run()
    assert code == 1 and cloud.did() == [*ONCE, *ONCE[1:] * 3]
    # A crash ends the connection to the other host, perhaps before its last line has come; its log has it.
    assert 1 <= printed.count("step 1 on host 0\n") <= 4 and "step 1 on host 1" not in printed
    assert errors.count("host 1: step 1 on host 1\n") == 4
    for home in (first, second):
        installed = (home / "installed").read_text().splitlines()
        assert len(installed) == 3 and installed[-1].endswith("/requirements.txt jax[tpu]"), installed
        assert (home / "mounted").read_text() == "my-bucket\n"
        trained = (home / "trained").read_text().splitlines()
        assert trained == ["-u", "-m", "taming_jax.train", "--distributed", *TRAIN] * 4
        logs = sorted((home / "taming_jax").glob("2*/train.log"))
        assert len(logs) == 4 and {log.read_text() for log in logs} == {f"step 1 on host {home.name[-1]}\n"}
        assert (logs[0].parent / "taming_jax" / "train.py").read_text() == (ROOT / "taming_jax/train.py").read_text()


def test_an_installation_that_broke_off_is_no_installation(tmp_path):
    cloud = Cloud(tmp_path, hosts=1)
    home = Path(cloud.hosts[0]["HOME"])
    (home / "no-network").touch()
    for broken in (True, False):
        setup = cloud.on_host("setup", "my-bucket")
        printed, _ = setup.communicate(timeout=60)
        assert setup.returncode == (1 if broken else 0), printed  # pip's own 2 would mean a user's mistake
        (home / "no-network").unlink(missing_ok=True)
    assert len((home / "installed").read_text().splitlines()) == 6


def test_another_bucket_is_not_written_to(tmp_path):
    cloud = Cloud(tmp_path, hosts=1)
    cloud.on_host("setup", "my-bucket").wait(timeout=60)
    setup = cloud.on_host("setup", "another")
    printed, _ = setup.communicate(timeout=60)
    assert setup.returncode == 2 and printed.startswith("error: /bucket is the bucket my-bucket, not another")


def test_a_training_outlives_its_connection(tmp_path):
    """The command that is repeated, and one of a later attempt, find the training that runs; other flags do not."""
    cloud = Cloud(tmp_path, hosts=1)
    home = Path(cloud.hosts[0]["HOME"])
    cloud.on_host("setup", "my-bucket").wait(timeout=60)
    (home / "gate").touch()
    broken = cloud.on_host("train", *TRAIN)
    assert broken.stdout.readline() == "step 1 on host 0\n"
    pid = int((home / "taming_jax" / "current" / "pid").read_text())
    try:
        broken.kill()
        repeated = cloud.on_host("train", *TRAIN)
        later = cloud.on_host("train", *TRAIN, attempt="2")
        for watching in (repeated, later):
            assert watching.stdout.readline() == "step 1 on host 0\n"
        other = cloud.on_host("train", "--config=configs/imagenet_vq.py", attempt="3")
        assert "error: this slice trains already, with other flags: --config" in other.communicate(timeout=60)[0]
        assert other.returncode == 2
    finally:
        os.killpg(pid, signal.SIGINT)  # as launch/README.md says how to end it
    assert [watching.wait(timeout=60) for watching in (repeated, later)] == [130, 130]
    assert cloud.on_host("train", *TRAIN).wait(timeout=60) == 130  # repeated when all is over
    assert (home / "trained").read_text().count("taming_jax.train") == 1


@pytest.mark.parametrize(("code", "again"), [(0, False), (75, True), (2, False), (130, False), (134, False)])
def test_slurm_runs_again_what_was_saved(code, again, tmp_path):
    record = f'printf "%s\\n" "$0 $*" >>{tmp_path}/calls'
    tools = write_tools(tmp_path / "bin", dict(srun=f"{record}\nexit {code}", scontrol=record))
    env = dict(PATH=str(tools), SLURM_JOB_ID="7")
    done = subprocess.run(["bash", LAUNCH / "slurm.sbatch", *TRAIN], env=env, timeout=60)
    calls = (tmp_path / "calls").read_text().splitlines()
    assert done.returncode == code
    assert calls[0] == f"{tools}/srun python -m taming_jax.train --distributed {' '.join(TRAIN)}"
    assert calls[1:] == ([f"{tools}/scontrol requeue 7"] if again else [])


def strict(required: dict, **optional) -> dict:
    """A JSON schema of an object with these fields and no others."""
    return dict(type="object", properties=required | optional, required=list(required), additionalProperties=False)


TEXT, NUMBER = dict(type="string"), dict(type="integer", minimum=0)
ACTIONS = ["FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"]
RULE = strict(
    dict(name=dict(type="string", pattern="^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"), action=dict(enum=ACTIONS)),
    onJobFailureReasons=dict(
        type="array", items=dict(enum=["BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes", "PodFailurePolicy"])
    ),
)
JOBSET = strict(
    dict(
        apiVersion=dict(const="jobset.x-k8s.io/v1alpha2"),
        kind=dict(const="JobSet"),
        metadata=strict(dict(name=TEXT), annotations=dict(type="object", additionalProperties=TEXT)),
        spec=strict(
            dict(
                failurePolicy=strict(dict(maxRestarts=NUMBER), rules=dict(type="array", items=RULE)),
                replicatedJobs=dict(
                    type="array",
                    items=strict(dict(name=TEXT, replicas=NUMBER, template=strict(dict(spec=dict(type="object"))))),
                ),
            )
        ),
    )
)


def test_jobset():
    jobset = yaml.safe_load((LAUNCH / "gke" / "jobset.yaml").read_text())
    jsonschema.validate(jobset, JOBSET)
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = dict(apiVersion="batch/v1", kind="Job", metadata=dict(name="slice"), spec=replicated["template"]["spec"])
    kubernetes_validate.validate(job, kubernetes_validate.latest_version(), strict=True)
    spec = job["spec"]
    pod = spec["template"]["spec"]
    (train,) = pod["containers"]
    chips = train["resources"]["limits"]["google.com/tpu"]
    topology = math.prod(map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")))
    assert spec["parallelism"] * chips == spec["completions"] * chips == topology
    assert train["resources"]["requests"] == train["resources"]["limits"]
    # The pods' codes: 2 and 130 end the job by the pod failure policy, which ends the set; all else starts it anew.
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert spec["backoffLimit"] == 0 and pod["restartPolicy"] == "Never"
    assert rule["action"] == "FailJob" and rule["onExitCodes"]["values"] == [2, 130]
    assert rule["onExitCodes"]["containerName"] == train["name"]
    (failure,) = jobset["spec"]["failurePolicy"]["rules"]
    assert failure["action"] == "FailJobSet" and failure["onJobFailureReasons"] == ["PodFailurePolicy"]
    mounts = {mount["name"]: mount["mountPath"] for mount in train["volumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in pod["volumes"]}
    (cache,) = [variable["value"] for variable in train["env"] if variable["name"] == "JAX_COMPILATION_CACHE_DIR"]
    assert cache.startswith(mounts["bucket"] + "/")
    flags = dict(flag.split("=", 1) for flag in train["args"])
    assert flags["--workdir"].startswith(mounts["bucket"] + "/") and (ROOT / flags["--config"]).is_file()


def test_dockerfile():
    lines = re.sub(r"\\\n", " ", (LAUNCH / "gke" / "Dockerfile").read_text()).splitlines()
    steps = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    sources = [content.split()[0] for step, content in steps if step == "COPY"]
    ignored = (LAUNCH / "gke" / "Dockerfile.dockerignore").read_text().splitlines()
    assert ignored[0] == "*" and {f"!{source}" for source in sources} == {x for x in ignored if x.startswith("!")}
    assert all((ROOT / source).exists() for source in sources)
    # What is slow and seldom changes comes first.
    order = [step for step, _ in steps if step in ("COPY", "RUN")]
    assert order == ["COPY", "RUN", "COPY", "COPY"] and sources[0] == "requirements.txt"
    (install,) = [content for step, content in steps if step == "RUN"]
    check, pip = install.split("&& pip install ")
    assert pip.endswith('-r requirements.txt "jax[$DEVICE]"')
    for device, code in (("tpu", 0), ("cuda13", 0), ("cuda12", 0), ("gpu", 2)):
        assert (
            subprocess.run(["sh", "-c", check], env=dict(DEVICE=device), stderr=subprocess.DEVNULL).returncode == code
        )
        assert code or device in importlib.metadata.metadata("jax").get_all("Provides-Extra")
    (entry,) = [json.loads(content) for step, content in steps if step == "ENTRYPOINT"]
    assert entry[:2] == ["python", "-m"] and importlib.util.find_spec(entry[2]) and entry[3:] == ["--distributed"]
