"""Runs on GKE as a JobSet: `python -m launch.gke --image IMAGE --tpu-topology 4x4 ... -- --config`.

Every slice of TPUs is a Job with a node pool to itself, every host a pod. A run that is pre-empted
and has the time to save leaves with its own exit status and is started again, which does not count
as a failure. Of several pods that have no time, the survivors may be seen first: that counts.
"""

from __future__ import annotations

import math
import re
import sys
from argparse import Namespace
from typing import Any

import yaml

from launch.command_line import PREEMPTED, Parser, perform, training_command
from rtsam_jax.errors import ConfigError, run_command
from rtsam_jax.training.processes import ADDRESS, COUNT, INDEX

PORT = 8476
WORKERS = "workers"  # the only replicated job


def parser() -> Parser:
    """The flags."""
    found = Parser("gke", __doc__ or "")
    found.add_argument("--image", required=True, help="container with this repository installed")
    found.add_argument(
        "--source", default="", help="folder of the repository there; empty: the image's WORKDIR"
    )
    found.add_argument("--name", default="rtsam", help="of the JobSet")
    found.add_argument("--namespace", default="default", help="of the JobSet")
    found.add_argument("--tpu", default="", help="accelerator label, tpu-v5-lite-podslice say")
    found.add_argument("--tpu-topology", default="", help="chips of a slice, 4x4 say")
    found.add_argument("--chips-per-host", type=int, default=4, help="TPU chips of a host")
    found.add_argument("--slices", type=int, default=1, help="TPU slices, one node pool each")
    found.add_argument("--gpu", default="", help="accelerator label, nvidia-h100-80gb say")
    found.add_argument("--gpus-per-host", type=int, default=8, help="GPUs of a host")
    found.add_argument("--hosts", type=int, default=1, help="machines with GPUs")
    found.add_argument("--memory", default="64Gi", help="that a host must have free")
    found.add_argument("--claim", required=True, help="persistent volume claim, ReadWriteMany")
    found.add_argument("--shared", default="/mnt/rtsam", help="where the claim is mounted")
    found.add_argument("--spot", action="store_true", default=False, help="on spot machines")
    found.add_argument(
        "--max-restarts",
        type=int,
        default=20,
        help="after failures, and pre-emptions of several pods that left no time to save",
    )
    found.add_argument("--grace", type=int, default=300, help="seconds to save after SIGTERM")
    return found


def hosts_per_slice(topology: str, chips_per_host: int) -> int:
    """Pods of a TPU slice.

    Raises:
        ConfigError: the topology is none, or does not divide into hosts.
    """
    if not re.fullmatch(r"\d+(x\d+){1,2}", topology):
        raise ConfigError(f"--tpu-topology is {topology!r}, but it must be like 4x4 or 2x2x4.")
    chips = math.prod(map(int, topology.split("x")))
    if chips_per_host < 1 or chips < 1 or chips % chips_per_host:
        raise ConfigError(
            f"--tpu-topology {topology} has {chips} chips, which do not divide over hosts of "
            f"--chips-per-host {chips_per_host}."
        )
    return chips // chips_per_host


def manifest(arguments: Namespace) -> dict[str, Any]:
    """The JobSet, as `kubectl` takes it.

    Raises:
        ConfigError: not exactly one kind of accelerator; a number or name is out of range; of the
            training's arguments.
    """
    if bool(arguments.tpu) == bool(arguments.gpu):
        raise ConfigError("give either --tpu with --tpu-topology, or --gpu with --hosts.")
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", arguments.name):
        raise ConfigError(
            f"--name is {arguments.name!r}, but it must be small letters, digits and -, 40 at most."
        )
    if min(arguments.slices, arguments.hosts, arguments.gpus_per_host) < 1:
        raise ConfigError("--slices, --hosts and --gpus-per-host must be at least 1.")
    if arguments.max_restarts < 0 or arguments.grace < 30:
        raise ConfigError("--max-restarts must be at least 0 and --grace at least 30 seconds.")
    if arguments.tpu:
        pods = hosts_per_slice(arguments.tpu_topology, arguments.chips_per_host)
        replicas = arguments.slices
        accelerator = {"google.com/tpu": str(arguments.chips_per_host)}
        selector = {
            "cloud.google.com/gke-tpu-accelerator": arguments.tpu,
            "cloud.google.com/gke-tpu-topology": arguments.tpu_topology,
        }
        environment: list[dict[str, Any]] = []  # GKE names the hosts of a slice, jax reads that
        shm: list[dict[str, Any]] = []
    else:
        pods, replicas = arguments.hosts, 1
        accelerator = {"nvidia.com/gpu": str(arguments.gpus_per_host)}
        selector = {"cloud.google.com/gke-accelerator": arguments.gpu}
        environment = _addresses(arguments.name, pods)
        # NCCL goes through /dev/shm, of which a container has 64 MiB by itself.
        shm = [{"name": "shm", "emptyDir": {"medium": "Memory"}}]
    if arguments.spot:
        selector["cloud.google.com/gke-spot"] = "true"
    resources = {**accelerator, "memory": arguments.memory}
    command = training_command(
        "python",
        arguments.rest,
        f"--preempted-status={PREEMPTED}",
        shared=arguments.shared,
    )
    container: dict[str, Any] = {
        "name": "train",
        "image": arguments.image,
        "command": command,
        "env": [
            {"name": "PYTHONUNBUFFERED", "value": "1"},
            # A pod's home ends with it; what one start compiled, the next one finds.
            {"name": "JAX_COMPILATION_CACHE_DIR", "value": f"{arguments.shared}/compiled"},
            *environment,
        ],
        "resources": {"requests": resources, "limits": dict(resources)},
        "volumeMounts": [
            {"name": "shared", "mountPath": arguments.shared},
            *({"name": volume["name"], "mountPath": "/dev/shm"} for volume in shm),
        ],
    }
    if arguments.source:
        container["workingDir"] = arguments.source
    pod = {
        "restartPolicy": "Never",  # the JobSet starts all anew, or none
        "terminationGracePeriodSeconds": arguments.grace,
        "nodeSelector": selector,
        "containers": [container],
        "volumes": [
            {"name": "shared", "persistentVolumeClaim": {"claimName": arguments.claim}},
            *shm,
        ],
    }
    job = {
        "parallelism": pods,
        "completions": pods,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": _preempted()},
        "template": {"spec": pod},
    }
    metadata: dict[str, Any] = {"name": arguments.name, "namespace": arguments.namespace}
    if arguments.tpu:
        metadata["annotations"] = {
            "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
        }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "failurePolicy": {
                "maxRestarts": arguments.max_restarts,
                "rules": [
                    {
                        "action": "RestartJobSetAndIgnoreMaxRestarts",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    }
                ],
            },
            "replicatedJobs": [{"name": WORKERS, "replicas": replicas, "template": {"spec": job}}],
        },
    }


def _addresses(name: str, hosts: int) -> list[dict[str, Any]]:
    """jax's own variables; the JobSet gives every pod a host name."""
    index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    return [
        {"name": ADDRESS, "value": f"{name}-{WORKERS}-0-0.{name}:{PORT}"},
        {"name": COUNT, "value": str(hosts)},
        {"name": INDEX, "valueFrom": {"fieldRef": {"fieldPath": index}}},
    ]


def _preempted() -> list[dict[str, Any]]:
    """What of a pod's ends is a pre-emption, which the JobSet's own rule then forgives.

    A survivor's exit status, that of `ProcessFailed`, is none: it does not tell whether the other
    was evicted or failed, and a run that fails must not be started for ever.
    """
    told = {"containerName": "train", "operator": "In", "values": [PREEMPTED]}
    disrupted = {"type": "DisruptionTarget", "status": "True"}
    return [
        {"action": "FailJob", "onExitCodes": told},
        {"action": "FailJob", "onPodConditions": [disrupted]},
    ]


def main() -> None:
    """Entry point of the command."""
    arguments = parser().read(sys.argv[1:])
    text = yaml.safe_dump(manifest(arguments), sort_keys=False, width=1000)
    perform(["kubectl", "apply", "-f", "-"], dry_run=arguments.dry_run, text=text)


if __name__ == "__main__":
    run_command(main)
