"""The training loop on several Ray Train workers."""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.queue import Empty, Queue

from imachsr.config.build import build_net
from imachsr.config.load import make_run, run_to_dict
from imachsr.config.schema import ConfigError, Run
from imachsr.train import checkpoint
from imachsr.train.batches import batch_size
from imachsr.train.loop import Row, train


def connect(cpus: int | None = None) -> None:
    """Join the cluster at RAY_ADDRESS, or start Ray on this machine.

    Workers import what the driver can import: its working folder and PYTHONPATH are handed on.

    Args:
        cpus: Logical CPUs of a Ray that is started here, when more are wanted than the machine has; ignored on a cluster.
    """
    if ray.is_initialized():
        return
    # Ray's own progress output and usage report are for another audience; workers' prints would garble the live table.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.3")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    paths = [os.getcwd(), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    # "local": without it Ray would join whatever cluster was last started on this machine, and refuse the number of CPUs.
    local: dict[str, Any] = {} if os.environ.get("RAY_ADDRESS") else {"address": "local", "include_dashboard": False, "num_cpus": cpus}
    ray.init(
        runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)), "RAY_CHDIR_TO_TRIAL_DIR": "0"}},
        log_to_driver=False,
        logging_level="ERROR",
        configure_logging=True,
        **local,
    )


def _worker(config: dict[str, Any]) -> None:
    if not config["mistakes"].empty():  # the group was restarted after one, which it would only make again
        return

    def report(row: Row) -> None:
        if ray.train.get_context().get_world_rank() == 0:
            config["queue"].put(row)
        ray.train.report(dict(row))

    try:
        # resume: a worker group that is restarted after a failure goes on from the last epoch that is on disk.
        train(make_run(config["run"]), output=Path(config["output"]), report=report, resume=True)
    except (ValueError, FloatingPointError) as error:
        # Raised too, since other workers may be waiting for this one.
        config["mistakes"].put(FloatingPointError(str(error)) if isinstance(error, FloatingPointError) else ConfigError(str(error)))
        raise


def train_distributed(
    run: Run, *, workers: int, output: Path, report: Callable[[Row], object] = lambda row: None, resume: bool = False, max_failures: int = 3
) -> None:
    """Train a run data-parallel on several workers; gloo on CPUs, NCCL on GPUs (one each).

    Args:
        run: All settings; the batch size is the global one.
        workers: Number of processes, >= 1.
        output: As in :func:`imachsr.train.loop.train`; on several machines a folder that all of them share.
        report: Called in this process with each epoch's row.
        resume: Continue from the checkpoint in ``output``.
        max_failures: Restarts of the worker group, from the last checkpoint, before giving up.

    Raises:
        ConfigError: If the cluster cannot hold the workers, or the settings do not fit them.
        ValueError: If the data cannot be read.
        FloatingPointError: If a loss is not finite.
        RuntimeError: If training failed.
    """
    output = output.absolute()
    if workers < 1:
        raise ConfigError(f"`workers >= 1` must hold, but got {workers}")
    if not resume and (output / checkpoint.FILE).exists():
        raise ConfigError(f"{output} must be a new folder, but holds a training; give another --output, or continue it with --resume")
    batch_size(run, run.optimizer.batch_size, workers)
    # What every worker would fail at fails here, before any starts.
    samples, _ = run.data.load("train"), run.data.load("val")
    batch_size(run, len(samples), workers)
    build_net(run, num_classes=run.data.num_classes, size=(samples.images.shape[-2], samples.images.shape[-1]))
    connect(cpus=max(os.cpu_count() or 1, workers))
    resources = ray.cluster_resources()
    use_gpu = run.compute.device != "cpu" and resources.get("GPU", 0) >= 1
    if run.compute.device == "cuda" and not use_gpu:
        raise ConfigError("`compute.device` must be a device of the cluster, but got 'cuda' and it has no GPU; use auto or cpu")
    kind = "GPU" if use_gpu else "CPU"
    if resources.get(kind, 0) < workers:
        # Ray would wait for ever for what never comes.
        raise ConfigError(f"the cluster must have {workers} {kind}s for {workers} workers, but has {resources.get(kind, 0):g}; lower --workers")
    queue, mistakes = Queue(actor_options={"num_cpus": 0}), Queue(actor_options={"num_cpus": 0})
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"run": run_to_dict(run), "output": str(output), "queue": queue, "mistakes": mistakes},
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(num_workers=workers, use_gpu=use_gpu),
        run_config=ray.train.RunConfig(
            name="ray", storage_path=str(output), failure_config=ray.train.FailureConfig(max_failures=max_failures), callbacks=[]
        ),
    )
    is_over = threading.Event()
    pump = threading.Thread(target=_pump, args=(queue, report, is_over), daemon=True)
    pump.start()
    try:
        error = trainer.fit().error
        mistake = None if mistakes.empty() else mistakes.get()
    finally:
        is_over.set()
        pump.join(timeout=30)
        queue.shutdown()
        mistakes.shutdown()
    if mistake is not None:
        raise mistake
    if error is not None:
        raise RuntimeError(f"training failed: {error}") from error
    if not (output / checkpoint.FILE).exists():
        raise ConfigError(f"--output must be a folder that all machines of the cluster share, but this one does not see the checkpoint in {output}")


def _pump(queue: Any, report: Callable[[Row], object], is_over: threading.Event) -> None:
    while True:
        try:
            row = queue.get(timeout=0.5)
        except Empty:
            if is_over.is_set():
                return
        else:
            report(row)
