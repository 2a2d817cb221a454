"""What the launchers would do: rendered, parsed, checked by shellcheck, and the shell parts run."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from launch import gke, slurm, tpu_vm
from launch.command_line import PREEMPTED, Parser, perform
from rtsam_jax.errors import ConfigError, MissingFile, RTSamError
from tests.tiny import command_environment

SPOKEN = '--config.prompt.task_texts=orn=a bone\'s "death"; ce=$HOME & *'
TRAINING = ["--", "--config", "configs/a b.py", "--config.out=/mnt/rtsam/run", SPOKEN]
TPU_VM = ["start", "--name=pod", "--zone=us-central2-b"]
SLURM = ["--nodes=2", "--gpus-per-node=4"]
GKE_TPU = ["--image=i", "--claim=disk", "--tpu=tpu-v5-lite-podslice", "--tpu-topology=4x4"]
GKE_GPU = ["--image=i", "--claim=disk", "--gpu=nvidia-h100-80gb", "--hosts=3"]
# What is quoted is left for another shell or for none; a trap is what calls a function.
MEANT = ("--exclude=SC2016,SC2329",)
EXPECTED = [*TRAINING[1:], "--multihost"]


def shellcheck(script: str) -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("shellcheck"), "--shell=bash", *MEANT, "-"],
        input=script,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def batch(*flags: str) -> str:
    return slurm.batch_script(slurm.parser().read([*SLURM, *flags, *TRAINING]))


def jobset(*flags: str) -> dict[str, Any]:
    """As `kubectl` would read what is rendered."""
    found = gke.manifest(gke.parser().read([*flags, *TRAINING]))
    return yaml.safe_load(yaml.safe_dump(found, sort_keys=False))


def test_the_batch_script_is_sound_bash() -> None:
    script = batch("--partition=gpu", "--memory=200G", "--account=me")
    shellcheck(script)
    directives = dict(
        line.removeprefix("#SBATCH --").split("=", 1)
        for line in script.splitlines()
        if line.startswith("#SBATCH --") and "=" in line
    )
    assert directives["nodes"] == "2"
    assert directives["ntasks-per-node"] == directives["gpus-per-node"] == "4"  # one task per GPU
    assert directives["signal"] == "TERM@300" and directives["open-mode"] == "append"
    assert (directives["partition"], directives["mem"], directives["account"]) == (
        "gpu",
        "200G",
        "me",
    )
    assert "#SBATCH --requeue" in script
    # A directive after the first command is a comment.
    assert "#SBATCH" not in script.split("set -u")[1]


def test_without_gpus_a_task_has_the_node() -> None:
    arguments = slurm.parser().read(["--nodes=2", *TRAINING])
    script = slurm.batch_script(arguments)
    assert "--ntasks-per-node=1" in script and "gpus" not in script


# Two tasks: told to stop, one takes longer to save. As Slurm's, it forces a termination when it is
# signalled itself, ends all where it is asked to at a bad exit, and returns the highest status.
SRUN = f"""\
#!{sys.executable}
import signal, subprocess, sys, time

TASK = '''
import signal, sys, time
save, length, status = map(float, sys.argv[1:])
signal.signal(signal.SIGTERM, lambda *_: (time.sleep(save), sys.exit({PREEMPTED})))
print("ready", flush=True)
time.sleep(length)
sys.exit(int(status))
'''
tasks = [
    subprocess.Popen(
        [sys.executable, "-c", TASK, save, *open("mode").read().split()],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    for save in ("0.1", "0.5")
]

def kill(*_):
    for task in tasks:
        task.kill()

signal.signal(signal.SIGTERM, kill)
for task in tasks:
    task.stdout.readline()
print([task.pid for task in tasks], sys.argv[1:], flush=True)
while None in (statuses := [task.poll() for task in tasks]):
    if any(statuses) and "--kill-on-bad-exit=1" in sys.argv:
        kill()
    time.sleep(0.02)
sys.exit(max(status if status >= 0 else 128 - status for status in statuses))
"""


def fakes(folder: Path) -> dict[str, str]:
    """An environment with an `srun` that shows its tasks and arguments, and a `scontrol`."""
    for name, content in (("srun", SRUN), ("scontrol", '#!/bin/sh\necho "scontrol $*"\n')):
        (folder / name).write_text(content)
        (folder / name).chmod(0o755)
    return command_environment(
        PATH=f"{folder}:{os.environ['PATH']}", SLURM_JOB_ID="77", SLURM_CPUS_PER_TASK="8"
    )


@pytest.mark.parametrize("signals", [1, 2])
def test_a_job_whose_tasks_are_told_to_stop_saves_and_queues_again(
    tmp_path: Path, signals: int
) -> None:
    (tmp_path / "mode").write_text("60 0")
    job = subprocess.Popen(
        ["bash", "-c", batch(f"--source={tmp_path}")],
        env=fakes(tmp_path),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert job.stdout is not None
    pids, arguments = job.stdout.readline().strip().split("] ", 1)  # srun is under way
    for _ in range(signals):
        for pid in json.loads(pids + "]"):
            os.kill(pid, signal.SIGTERM)
    out, _ = job.communicate(timeout=30)
    assert job.returncode == PREEMPTED and out == "scontrol requeue 77\n"
    python = [".venv/bin/python", "-m", "rtsam_jax.train"]
    asked = ["--kill-on-bad-exit=0", "--cpus-per-task=8"]
    assert arguments == repr([*asked, *python, *EXPECTED, f"--preempted-status={PREEMPTED}"])


@pytest.mark.parametrize("status", [0, 7])
def test_a_job_that_ends_by_itself_does_not_queue_again(tmp_path: Path, status: int) -> None:
    (tmp_path / "mode").write_text(f"0.1 {status}")
    job = subprocess.run(
        ["bash", "-c", batch(f"--source={tmp_path}")],
        env=fakes(tmp_path),
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert job.returncode == status and "scontrol" not in job.stdout


@pytest.mark.parametrize("action", tpu_vm.ACTIONS)
def test_what_the_hosts_of_a_tpu_run_is_sound(action: str) -> None:
    arguments = tpu_vm.parser().read([action, *TPU_VM[1:], "--project=p", *TRAINING])
    shellcheck(tpu_vm.remote_script(arguments))
    for command in tpu_vm.commands(arguments):
        assert command[:4] == ["gcloud", "compute", "tpus", "tpu-vm"]
        assert {"--zone=us-central2-b", "--project=p"} <= set(command)
        assert f"--worker={0 if action == 'log' else 'all'}" in command


def test_a_tpu_host_starts_the_training_and_stops_it(tmp_path: Path) -> None:
    """The remote scripts, run here by a shell, with a stand-in for the interpreter."""
    python = tmp_path / "source" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(
        '#!/bin/sh\nprintf "%s\\n" "$@"\ntrap "echo told; exit 0" TERM\n'
        "while :; do sleep 0.05; done\n"
    )
    python.chmod(0o755)
    (tmp_path / "mountpoint").write_text("#!/bin/sh\nexit 0\n")
    (tmp_path / "mountpoint").chmod(0o755)
    environ = command_environment(PATH=f"{tmp_path}:{os.environ['PATH']}")

    def remote(action: str) -> subprocess.CompletedProcess[str]:
        flags = [action, *TPU_VM[1:], f"--source={tmp_path / 'source'}"]
        script = tpu_vm.remote_script(tpu_vm.parser().read([*flags, *TRAINING]))
        return subprocess.run(
            ["bash", "-c", script],
            cwd=tmp_path,
            env=environ,
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )

    started = remote("start")
    assert started.returncode == 0, started.stderr
    again = remote("start")
    assert again.returncode == 1 and "runs already" in again.stderr
    assert remote("stop").returncode == 0
    deadline = time.monotonic() + 20
    while "told" not in (log := (tmp_path / "rtsam.log").read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert log.splitlines() == ["-m", "rtsam_jax.train", *EXPECTED, "told"]
    (tmp_path / "rtsam.pid").write_text(str(os.getpid()))  # which a stranger has by now
    late = remote("stop")
    assert late.returncode == 0 and late.stdout == "rtsam does not run here\n"


@pytest.mark.parametrize("python", tpu_vm.PYTHONS)
def test_a_tpu_host_installs_what_the_constraints_are_for(python: str) -> None:
    script = tpu_vm.remote_script(
        tpu_vm.parser().read(["install", *TPU_VM[1:], "--python", python])
    )
    (file,) = [word for word in shlex.split(script) if word.startswith("constraints/")]
    assert (tpu_vm.REPOSITORY / file).is_file() and f"--python {python}" in script


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        ("90", 5400),
        ("90:30", 5430),
        ("1:02:03", 3723),
        ("2-1", 176400),
        ("2-1:30", 178200),
        ("2-1:30:05", 178205),
    ],
)
def test_limits_of_time_are_read_as_slurm_reads_them(time: str, seconds: int) -> None:
    assert slurm.seconds(time) == seconds


def test_a_tpu_slice_as_a_jobset() -> None:
    found = jobset(*GKE_TPU, "--slices=2", "--spot", "--max-restarts=5", "--grace=120")
    (annotation,) = found["metadata"]["annotations"].items()
    assert annotation == (
        "alpha.jobset.sigs.k8s.io/exclusive-topology",
        "cloud.google.com/gke-nodepool",
    )
    assert found["spec"]["failurePolicy"]["maxRestarts"] == 5
    (workers,) = found["spec"]["replicatedJobs"]
    job = workers["template"]["spec"]
    assert workers["replicas"] == 2 and job["parallelism"] == job["completions"] == 4
    assert job["backoffLimit"] == 0 and job["completionMode"] == "Indexed"
    pod = job["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == 120 and pod["restartPolicy"] == "Never"
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
        "cloud.google.com/gke-spot": "true",
    }
    (container,) = pod["containers"]
    assert container["resources"]["limits"]["google.com/tpu"] == "4"
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert container["command"][3:] == [*EXPECTED, f"--preempted-status={PREEMPTED}"]
    assert container["volumeMounts"] == [{"name": "shared", "mountPath": "/mnt/rtsam"}]
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "disk"}
    of_jax = {e["name"]: e["value"] for e in container["env"] if e["name"].startswith("JAX_")}
    assert of_jax == {"JAX_COMPILATION_CACHE_DIR": "/mnt/rtsam/compiled"}  # GKE names the hosts


def test_machines_with_gpus_as_a_jobset() -> None:
    job = jobset(*GKE_GPU)["spec"]["replicatedJobs"][0]["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    environment = {entry["name"]: entry for entry in container["env"]}
    assert job["parallelism"] == 3 and environment["JAX_NUM_PROCESSES"]["value"] == "3"
    # JobSet's own host name of the first pod, in the service that it makes.
    assert environment["JAX_COORDINATOR_ADDRESS"]["value"] == "rtsam-workers-0-0.rtsam:8476"
    index = environment["JAX_PROCESS_ID"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert index == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "8"
    (volume,) = [v for v in job["template"]["spec"]["volumes"] if "emptyDir" in v]
    assert volume["emptyDir"] == {"medium": "Memory"}
    assert {"name": volume["name"], "mountPath": "/dev/shm"} in container["volumeMounts"]


def test_a_jobset_runs_in_the_repository() -> None:
    def container(*flags: str) -> dict[str, Any]:
        (workers,) = jobset(*GKE_TPU, *flags)["spec"]["replicatedJobs"]
        return workers["template"]["spec"]["template"]["spec"]["containers"][0]

    assert container("--source=/opt/rtsam")["workingDir"] == "/opt/rtsam"
    assert "workingDir" not in container()  # the image's


def test_a_pre_emption_is_no_failure() -> None:
    found = jobset(*GKE_TPU)["spec"]
    (rule,) = found["failurePolicy"]["rules"]
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    job = found["replicatedJobs"][0]["template"]["spec"]
    told, evicted = job["podFailurePolicy"]["rules"]
    assert told["onExitCodes"]["values"] == [PREEMPTED]
    assert told["onExitCodes"]["containerName"] == "train"
    assert evicted["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]


@given(st.lists(st.integers(1, 16), min_size=2, max_size=3), st.sampled_from([1, 4, 8]))
@settings(max_examples=30, deadline=None)
def test_hosts_hold_the_whole_slice(sides: list[int], chips: int) -> None:
    topology, total = "x".join(map(str, sides)), 1
    for side in sides:
        total *= side
    if total % chips:
        with pytest.raises(ConfigError, match=f"has {total} chips"):
            gke.hosts_per_slice(topology, chips)
    else:
        assert gke.hosts_per_slice(topology, chips) * chips == total


@pytest.mark.parametrize(
    ("module", "flags", "sentence"),
    [
        (slurm, TRAINING, "required: --nodes"),
        (slurm, [*SLURM, "--", "--config.steps=3"], "no config was given"),
        (slurm, [*SLURM, "--grace=5", *TRAINING], "--grace is 5"),
        (slurm, [*SLURM, "--time=soon", *TRAINING], "--time is 'soon'"),
        (slurm, [*SLURM, "--time=5", *TRAINING], "--time is 5, but it must be longer"),
        (slurm, [*SLURM, "--name=a b", *TRAINING], "'a b' of job-name"),
        (slurm, ["--nodes=0", *TRAINING], "--nodes and --cpus-per-task"),
        (slurm, [*SLURM, "--gpu=3", *TRAINING], "unrecognized arguments: --gpu=3"),
        (tpu_vm, ["start", "--name=pod", *TRAINING], "required: --zone"),
        (tpu_vm, ["begin", *TPU_VM[1:], *TRAINING], "invalid choice: 'begin'"),
        (tpu_vm, [*TPU_VM, "--python=3.10", *TRAINING], "invalid choice: '3.10'"),
        (tpu_vm, [*TPU_VM, "--", "--config", "a.py"], "--config.out=/mnt/rtsam/NAME"),
        (tpu_vm, [*TPU_VM, "--shared=/nfs", *TRAINING], "--config.out=/nfs/NAME"),
        (gke, [*GKE_TPU[:2], *TRAINING], "either --tpu"),
        (gke, [*GKE_TPU, *GKE_GPU, *TRAINING], "either --tpu"),
        (gke, [*GKE_TPU, "--tpu-topology=16", *TRAINING], "--tpu-topology is '16'"),
        (gke, [*GKE_TPU, "--name=My_Run", *TRAINING], "--name is 'My_Run'"),
        (gke, ["--image=i", *TRAINING], "required: --claim"),
    ],
)
def test_a_mistake_is_one_sentence(module: Any, flags: list[str], sentence: str) -> None:
    render = {slurm: slurm.batch_script, tpu_vm: tpu_vm.commands, gke: gke.manifest}[module]
    with pytest.raises(RTSamError) as caught:
        render(module.parser().read(flags))
    text = str(caught.value)
    assert sentence in text and "\n" not in text and text.endswith((".", "--help."))


@pytest.mark.parametrize(
    ("module", "flags", "first"),
    [
        ("slurm", SLURM, "# sbatch"),
        ("tpu_vm", TPU_VM, "gcloud compute tpus tpu-vm ssh pod"),
        ("gke", GKE_TPU, "# kubectl apply -f -"),
        ("local", ["--processes=2"], "env JAX_COORDINATOR_ADDRESS=localhost:"),
    ],
)
def test_a_dry_run_says_what_would_be_done(
    module: str, flags: list[str], first: str, tmp_path: Path
) -> None:
    """By the command itself, with neither gcloud nor kubectl nor sbatch to be found."""
    result = subprocess.run(
        [sys.executable, "-m", f"launch.{module}", *flags, "--dry-run", *TRAINING],
        env=command_environment(PATH=str(tmp_path)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(first)
    if module == "gke":
        assert yaml.safe_load(result.stdout) == jobset(*GKE_TPU)


@pytest.mark.parametrize("module", [slurm, tpu_vm, gke])
def test_every_flag_is_explained(module: Any) -> None:
    parser: Parser = module.parser()
    assert all(action.help for action in parser._actions)


@pytest.mark.parametrize("given", ["--preempted-status=75", "--preempted-status=42"])
def test_the_status_that_a_cluster_waits_for_is_the_launchers(given: str) -> None:
    with pytest.raises(ConfigError, match="--preempted-status is the launcher's"):
        slurm.batch_script(slurm.parser().read([*SLURM, *TRAINING, given]))


def test_a_cluster_command_that_is_not_there_or_fails(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match="is not installed here"):
        perform([str(tmp_path / "nothing")], dry_run=False)
    with pytest.raises(ConfigError, match="exit status 3"):
        perform(["sh", "-c", "exit 3"], dry_run=False)


def test_quoting_survives_the_shell() -> None:
    (command,) = tpu_vm.commands(tpu_vm.parser().read([*TPU_VM, *TRAINING]))
    script = next(part for part in command if part.startswith("--command="))
    words = shlex.split(script.removeprefix("--command="), comments=False)
    assert SPOKEN in words and "configs/a b.py" in words
