"""Launch scripts: readable, valid, the right numbers in them, and refused when they cannot work."""

import os
import re
import shutil
import signal
import subprocess
import time
import tomllib

import jax
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from refvlm_jax.cli.main import main
from refvlm_jax.config.errors import ConfigError
from refvlm_jax.config.schema import RunConfig
from refvlm_jax.launching.fits import fits
from refvlm_jax.launching.pods import parse_pod
from refvlm_jax.launching.render import FILES, Launch, LaunchError, render, write
from refvlm_jax.launching.xla_flags import flag_sets, flags_of
from refvlm_jax.plan.pods import Pod
from refvlm_jax.testing.toy import toy_config

FSDP = {"preset": "fsdp", "shape": (-1, 8, 1, 1)}
NASTY = "data.path='/mnt/it is $HOME \"quoted\" `here`'"


def launch(target, pod=None, **fields):
    config = toy_config(mesh=fields.pop("mesh", FSDP), data={"batch_size": 512})
    cloud = {"image": "registry/refvlm:1", "bucket": "runs"} if target == "gke" else {}
    given = {"recipe": "configs/toy.py", "target": target, "pod": pod, **cloud, **fields}
    return Launch(config=config, **given)


CASES = {
    "local": launch("local", processes=2, devices=4, overrides=(NASTY,)),
    "one slice": launch("tpu_vm", "v5e-64", overrides=(NASTY,)),
    "two slices": launch("tpu_vm", "v5p-128x2", mesh={"preset": "hsdp", "shape": (2, -1, 1, 1)}),
    "two slices with overrides": launch(
        "tpu_vm", "v5e-16x2", mesh={"preset": "hsdp", "shape": (2, -1, 1, 1)}, overrides=(NASTY,)
    ),
    "gke": launch("gke", "v6e-64", overrides=(NASTY,)),
    "gke slices": launch("gke", "v5e-256x4", mesh={"preset": "hsdp", "shape": (4, -1, 1, 1)}),
    "slurm": launch("slurm", "h100-8x8", overrides=(NASTY,), deterministic=True),
}
RENDERED = {name: render(case) for name, case in CASES.items()}


@pytest.mark.parametrize("case", CASES)
def test_scripts_pass_the_shell_checker(case, tmp_path):
    scripts = [p for p in write(RENDERED[case], tmp_path) if p.suffix in (".sh", ".sbatch")]
    assert all(script.stat().st_mode & 0o100 for script in scripts)
    for script in scripts:
        checker = ["shellcheck", "--shell=bash"] if shutil.which("shellcheck") else ["bash", "-n"]
        checked = subprocess.run([*checker, script], capture_output=True, text=True)
        assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("case", CASES)
def test_files_are_plain_and_say_what_they_are(case):
    assert tuple(RENDERED[case]) == FILES[CASES[case].target]
    for text in RENDERED[case].values():
        assert "{{" not in text and "{%" not in text and text.endswith("\n")
        assert "# toy" in text and "Mesh: replica" in text
        assert not [line for line in text.splitlines() if line != line.rstrip()]


# A key's value: a type, a nested schema, or a one-element list of a schema.
CONTAINER = {
    "name": str, "image": str, "command": [str], "args": [str], "ports": [{"containerPort": int}],
    "env": [{"name": str, "value": str}], "resources": {"limits": {"google.com/tpu": int}},
    "volumeMounts": [{"name": str, "mountPath": str}],
}  # fmt: skip
POD_SPEC = {
    "restartPolicy": str, "terminationGracePeriodSeconds": int, "serviceAccountName": str,
    "nodeSelector": {
        "cloud.google.com/gke-tpu-accelerator": str, "cloud.google.com/gke-tpu-topology": str,
    },
    "containers": [CONTAINER],
    "volumes": [{"name": str, "csi": {"driver": str, "volumeAttributes": {
        "bucketName": str, "mountOptions": str}}}],
}  # fmt: skip
JOB = {
    "parallelism": int, "completions": int, "backoffLimit": int,
    "podFailurePolicy": {"rules": [{"action": str, "onExitCodes": {
        "containerName": str, "operator": str, "values": [int]}}]},
    "template": {"metadata": {"annotations": {"gke-gcsfuse/volumes": str}}, "spec": POD_SPEC},
}  # fmt: skip
JOBSET = {
    "apiVersion": str, "kind": str,
    "metadata": {
        "name": str,
        "annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": str},
    },
    "spec": {
        "failurePolicy": {
            "maxRestarts": int, "rules": [{"action": str, "onJobFailureReasons": [str]}],
        },
        "replicatedJobs": [{"name": str, "replicas": int, "template": {"spec": JOB}}],
    },
}  # fmt: skip


def assert_schema(node, schema, path=""):
    if isinstance(schema, list):
        assert isinstance(node, list) and node, path
        for index, item in enumerate(node):
            assert_schema(item, schema[0], f"{path}[{index}]")
    elif isinstance(schema, dict):
        assert isinstance(node, dict) and node.keys() == schema.keys(), (path, node)
        for key, value in schema.items():
            assert_schema(node[key], value, f"{path}.{key}")
    else:
        assert type(node) is schema, (path, node)


@pytest.mark.parametrize(("case", "slices", "hosts", "topology"),
                         [("gke", 1, 16, "8x8"), ("gke slices", 4, 64, "16x16")])  # fmt: skip
def test_the_job_set_follows_its_schema(case, slices, hosts, topology):
    job_set = yaml.safe_load(RENDERED[case]["jobset.yaml"])
    assert_schema(job_set, JOBSET)
    (job,) = job_set["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    assert (job["replicas"], spec["parallelism"], spec["completions"]) == (slices, hosts, hosts)
    pod = spec["template"]["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == topology
    assert pod["containers"][0]["resources"]["limits"]["google.com/tpu"] == 4
    assert pod["serviceAccountName"] == "default"
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["containerName"] == pod["containers"][0]["name"]
    assert rule["onExitCodes"]["values"] == [2]  # a refusal is not tried a hundred times
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", job_set["metadata"]["name"])


def words(command):
    """How a shell splits a command."""
    printed = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {command}"], capture_output=True, text=True, check=True
    )
    return printed.stdout.splitlines()


def test_overrides_reach_the_program_unharmed():
    text = RENDERED["gke"]["jobset.yaml"]
    (job,) = yaml.safe_load(text)["spec"]["replicatedJobs"]
    (command,) = job["template"]["spec"]["template"]["spec"]["containers"][0]["args"]
    assert words(command.removeprefix("exec "))[-1] == NASTY
    for case, file in (("local", "local.sh"), ("slurm", "slurm.sbatch")):
        line = next(line for line in RENDERED[case][file].splitlines() if "data.path" in line)
        assert words(line.strip().removesuffix("\\"))[0] == NASTY


def stub(folder, name, body):
    """A program that stands in for a real one."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
    (folder / name).chmod(0o755)


def shell(script, *arguments, home, **environment):
    paths = f"{home / 'bin'}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", script, *arguments],
        cwd=home,
        env={"PATH": paths, "HOME": str(home), **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_overrides_reach_a_tpu_vm_unharmed(tmp_path):
    (script,) = write(RENDERED["two slices with overrides"], tmp_path)
    # gcloud runs the command at once on "the host", where refvlm writes down what it was given.
    stub(
        tmp_path / "bin",
        "gcloud",
        'for a; do case "$a" in --command=*) bash -c "${a#*=}";; esac; done',
    )
    stub(tmp_path / "venv" / "bin", "activate", "")
    (tmp_path / "refvlm_jax").mkdir()
    record = (
        'printf "%s\\n" "$@" > ~/given.$$; echo "$LIBTPU_INIT_ARGS" >> ~/given.$$; touch ~/done.$$'
    )
    stub(tmp_path / "bin", "refvlm", record)
    done = shell(script, "train", home=tmp_path, PROJECT="p", ZONE="z")
    assert done.returncode == 0, done.stderr
    while len(list(tmp_path.glob("done.*"))) < 2:
        time.sleep(0.01)
    for file in tmp_path.glob("given.*"):
        *received, flags = file.read_text().splitlines()
        assert received[-1] == NASTY and received[received.index("--distributed") + 1] == "auto"
        assert "--xla_tpu_enable_data_parallel_all_reduce_opt=true" in flags.split()


@pytest.mark.parametrize(("first", "second", "status"), [(0, 0, 0), (3, 3, 3), (0, 5, 5)])
def test_a_local_run_starts_all_and_tells_how_it_ended(tmp_path, first, second, status):
    (script,) = write(RENDERED["local"], tmp_path)
    body = 'printf "%s\\n" "$@"; case "$*" in */2/0*) exit {};; esac; exit {}'
    stub(tmp_path / "bin", "refvlm", body.format(first, second))
    ended = shell(script, "train.steps=7", home=tmp_path)
    assert ended.returncode == status, ended.stderr
    for index in range(2):
        log = (tmp_path / "runs/toy/logs" / f"process.{index}.txt").read_text().splitlines()
        assert log[:5] == ["train", "--config", "configs/toy.py", "--workdir", "runs/toy"]
        assert log[5:] == ["--distributed", f"127.0.0.1:9000/2/{index}", NASTY, "train.steps=7"]


def test_a_signal_to_a_local_run_reaches_one_process_and_waits_for_all(tmp_path):
    (script,) = write(RENDERED["local"], tmp_path)
    # Process 0 tells process 1 through a file, as the coordination service would.
    body = """case "$*" in */2/0*) trap 'touch stop' TERM;; esac
touch "up.$$"
while [ ! -f stop ]; do sleep 0.01; done
exit 3"""
    stub(tmp_path / "bin", "refvlm", body)
    environment = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    running = subprocess.Popen(["bash", script], cwd=tmp_path, env=environment)
    while len(list(tmp_path.glob("up.*"))) < 2:
        time.sleep(0.01)
    running.send_signal(signal.SIGTERM)
    assert running.wait(60) == 3


def test_several_slices_add_flags_and_nodes():
    one, two = RENDERED["one slice"]["tpu_vm.sh"], RENDERED["two slices"]["tpu_vm.sh"]
    assert "--accelerator-type=v5litepod-64" in one and "--node-id" in one
    assert "--accelerator-type=v5p-128" in two and "--node-count=2" in two
    assert "data_parallel_all_reduce_opt" in two and "data_parallel_all_reduce_opt" not in one
    assert "Mesh: replica 2, fsdp 64" in two


def test_slurm_asks_for_what_the_pod_has():
    text = RENDERED["slurm"]["slurm.sbatch"]
    assert "#SBATCH --nodes=8\n" in text and "#SBATCH --gpus-per-node=8\n" in text
    assert "--xla_gpu_deterministic_ops=true" in text and "#SBATCH --signal=TERM@120" in text


@pytest.mark.parametrize(("name", "devices", "hosts", "slices", "topology"), [
    ("v5e-4", 4, 1, 1, "2x2"), ("v5e-256", 256, 64, 1, "16x16"), ("v6e-32", 32, 8, 1, "4x8"),
    ("v4-8", 4, 1, 1, "2x2x1"), ("v4-128", 64, 16, 1, "4x4x4"), ("v5p-64", 32, 8, 1, "2x4x4"),
    ("V5P-64x2", 64, 8, 2, "2x4x4"),
])  # fmt: skip
def test_tpu_pods(name, devices, hosts, slices, topology):
    pod = parse_pod(name)
    assert (pod.devices, pod.hosts, pod.slices) == (devices, hosts, slices)
    assert pod.topology == topology and pod.devices_per_host == 4


@given(st.sampled_from(["v4", "v5e", "v5p", "v6e"]), st.integers(0, 400), st.integers(0, 5))
def test_a_pod_is_whole_or_refused(model, size, slices):
    try:
        pod = parse_pod(f"{model}-{size}x{slices}")
    except ConfigError as error:
        assert f"{model}-{size}x{slices}" in str(error)
        return
    assert pod.devices == pod.slices * pod.hosts * pod.devices_per_host
    sides = map(int, pod.topology.split("x"))
    chips = 1
    for side in sides:
        chips *= side
    assert chips * pod.slices == pod.devices


def test_gpu_pods():
    pod = parse_pod("h100-4x8")
    assert (pod.hosts, pod.devices, pod.devices_per_host) == (4, 32, 8)
    assert (parse_pod("a100-8").hosts, parse_pod("a100-8").devices) == (1, 8)


@pytest.mark.parametrize("name", ["v5e-3", "v5e-512", "v9-4", "h100-0x8", "h100-2x16", "v5p-2", ""])
def test_pods_that_are_not_sold(name):
    with pytest.raises(ConfigError, match="pod"):
        parse_pod(name)


def test_refusals():
    with pytest.raises(LaunchError, match=r"does not fit.*refvlm plan --config configs/toy\.py"):
        render(launch("tpu_vm", "v5e-64", answer=False))
    with pytest.raises(LaunchError, match="needs --pod"):
        render(launch("slurm"))
    with pytest.raises(LaunchError, match="use --target slurm"):
        render(launch("tpu_vm", "h100-8x8"))
    with pytest.raises(LaunchError, match="use --target gke or tpu_vm"):
        render(launch("slurm", "v5e-64"))
    with pytest.raises(LaunchError, match="--image"):
        render(launch("gke", "v5e-64", image=""))
    with pytest.raises(LaunchError, match="make it 2"):
        render(launch("tpu_vm", "v5e-64x2", mesh={"preset": "fsdp", "shape": (1, -1, 1, 1)}))
    with pytest.raises(ConfigError, match=r"mesh\.shape.*does not fit 64 devices"):
        render(launch("tpu_vm", "v5e-64", mesh={"preset": "fsdp", "shape": (1, 32, 1, 1)}))


def test_the_plan_is_asked(monkeypatch):
    def make_plan(config: RunConfig, pod: Pod, *, analytic: bool) -> dict:
        return {"fits": analytic and pod.devices == 64}

    monkeypatch.setattr("refvlm_jax.launching.fits.make_plan", make_plan)
    assert fits(toy_config(), "v5e-64") and not fits(toy_config(), "v5e-16")


RECIPE = """
def get_config():
    return {"name": "toy", "data": {"batch_size": 512}, "mesh": {"preset": "fsdp"}}
"""


def test_the_command_writes_the_files_or_nothing(tmp_path, monkeypatch, capsys):
    recipe, out = tmp_path / "toy.py", tmp_path / "out"
    recipe.write_text(RECIPE)
    arguments = ["launch", "render", "--config", str(recipe), "--target", "slurm"]
    monkeypatch.setattr("refvlm_jax.launching.fits.make_plan", lambda *_, **__: {"fits": False})
    assert main([*arguments, "--pod", "h100-2x8", "--out", str(out)]) == 2
    assert "does not fit the memory of h100-2x8" in capsys.readouterr().err and not out.exists()
    assert main([*arguments, "--pod", "h100-2x8", "--out", str(out), "--no-plan"]) == 0
    assert [p.name for p in out.iterdir()] == ["slurm.sbatch"]
    assert "train.steps=7" not in (out / "slurm.sbatch").read_text()
    assert (
        main([*arguments, "--pod", "h100-2x8", "--out", str(out), "--no-plan", "train.steps=7"])
        == 0
    )
    assert "train.steps=7" in (out / "slurm.sbatch").read_text()


def test_every_flag_has_a_reason_and_gpu_flags_are_known_to_this_compiler():
    for name, entry in flag_sets().items():
        for part in ("everywhere", "several"):
            for item in entry.get(part, []):
                assert item["flag"].startswith("--xla_") and len(item["why"]) > 10, name
    flags = flags_of(parse_pod("h100-2x8"), deterministic=True).flags
    options = dict(flag.flag.removeprefix("--").split("=") for flag in flags)
    lowered = jax.jit(lambda x: x + 1).lower(1.0)
    lowered.compile(
        compiler_options={name: tomllib.loads(f"v={v}")["v"] for name, v in options.items()}
    )
    with pytest.raises(Exception, match="xla_gpu_no_such_flag"):
        lowered.compile(compiler_options={"xla_gpu_no_such_flag": True})
