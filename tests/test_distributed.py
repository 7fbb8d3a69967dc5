"""Two processes see the batches that one sees and end with its weights; a run stopped on some goes on on others."""

import contextlib
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from lightning.pytorch import Callback

from recorder import rows
from runs import base_config, checkpoint, fit, merged, regularisation, run, write_config, write_photos

HANG_S = 300
TOLERANCE = 1e-6
ADAPTERS = {
    "LoRA": {"class_path": "LoRA", "init_args": {"rank": 4}},
    "LoKr": {"class_path": "LyCORIS", "init_args": {"algo": "lokr", "rank": 4, "factor": 4}},
    "Full": {"class_path": "Full"},
}
# Adam divides a gradient by its own size, so that with the usual eps of 1e-8 an element whose true gradient is zero
# moves by the learning rate in the direction of its rounding error. 1e-6 is above the rounding, far below gradients.
OPTIMIZER = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-4, "eps": 1e-6}}
TWO_PROCESSES = {"trainer.devices": 2, "trainer.strategy": "ddp"}
TWO_NODES = {"trainer.devices": 1, "trainer.num_nodes": 2, "trainer.strategy": "ddp"}


class RaisesOn(Callback):
    """Fails on one rank only, after its second batch, while the others are busy with something else."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch.position != 1:
            return
        if trainer.global_rank == self.rank:
            raise RuntimeError(f"rank {self.rank} has had enough")
        time.sleep(2 * HANG_S)


class KeepsWeights(Callback):
    """Writes what each rank ends with: checkpoints show only rank 0."""

    def __init__(self, path: str) -> None:
        self.path = path

    def on_train_end(self, trainer, pl_module):
        torch.save(pl_module.state_dict(), f"{self.path}.{trainer.global_rank}")


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> pathlib.Path:
    return write_photos(tmp_path_factory.mktemp("subject"), [(64, 64)] * 3 + [(128, 64)] * 2)


@pytest.fixture(scope="module")
def others(tmp_path_factory) -> pathlib.Path:
    return write_photos(tmp_path_factory.mktemp("class"), [(64, 64)] * 2 + [(128, 64)], seed=1)


@pytest.fixture(scope="module")
def held_out(tmp_path_factory) -> pathlib.Path:
    return write_photos(tmp_path_factory.mktemp("eval"), [(64, 64)], seed=2)


def configured(tmp_path, tiny, photos, others, adapter, name, **changes):
    """Six optimizer steps of two batches, with regularisation; a checkpoint in the middle."""
    config = base_config(tmp_path / name, tiny, photos)
    config["model"]["adapter"] = ADAPTERS[adapter]
    config["data"]["datasets"].append(regularisation(others))
    fixed = {
        "trainer.max_steps": 6,
        "trainer.accumulate_grad_batches": 2,
        "trainer.callbacks": [
            {"class_path": "recorder.Recorder", "init_args": {"path": str(tmp_path / f"{name}.jsonl")}},
            {"class_path": "test_distributed.KeepsWeights", "init_args": {"path": str(tmp_path / f"{name}.pt")}},
        ],
        "checkpoint.every_n_steps": 3,
        "model.optimizer": OPTIMIZER,
    }
    return merged(config, {**fixed, **changes})


def with_evaluation(config, folder):
    """One held-out image for any number of ranks, evaluated twice."""
    entry = {**regularisation(folder), "id": "held-out", "dataset_type": "eval"}
    del entry["is_regularisation_data"]
    config["data"]["datasets"].append(entry)
    changes = {"trainer.check_val_every_n_epoch": None, "trainer.val_check_interval": 6, "data.eval_timesteps": 2}
    return merged(config, {**changes, "checkpoint.monitor": "loss/val"})


def start(config, *args: str, **environment: str) -> subprocess.Popen:
    """The console command in a process group of its own."""
    root = pathlib.Path(config["trainer"]["default_root_dir"])
    path = write_config(root.parent / f"{root.name}.yaml", config)
    here = str(pathlib.Path(__file__).parent)
    paths = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-m", "dreamlit", "fit", "--config", str(path), *args],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(*processes: subprocess.Popen) -> tuple[list[int], str]:
    """Exit codes and everything that was printed. Nothing of the processes' groups survives."""
    try:
        texts = [process.communicate(timeout=HANG_S)[0] for process in processes]
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return [process.returncode for process in processes], "".join(texts)


def fit_on_ranks(config, *args: str) -> pathlib.Path:
    codes, text = finish(start(config, *args))
    assert codes == [0], text
    return pathlib.Path(config["trainer"]["default_root_dir"])


def fit_on_nodes(config) -> pathlib.Path:
    """The same configuration started by hand on two "machines", as a cluster without a scheduler does it."""
    codes, text = started_on_nodes(config, config)
    assert codes == [0, 0], text
    return pathlib.Path(config["trainer"]["default_root_dir"])


def started_on_nodes(*configs) -> tuple[list[int], str]:
    """Exit codes and output of one configuration for each node."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return finish(*(start(config, **address, NODE_RANK=str(node)) for node, config in enumerate(configs)))


def difference(one: dict, two: dict) -> float:
    assert one.keys() == two.keys()
    return max(float((one[name] - two[name]).abs().max()) for name in one)


def assert_same_end(alone: pathlib.Path, together: pathlib.Path, adapter: str, step: int = 6) -> None:
    """Equal weights at the end, where training has moved them by at least a hundred times the tolerance."""
    one, two = checkpoint(alone, step), checkpoint(together, step)
    begun = checkpoint(alone, 3)["state_dict"]
    assert difference(one["state_dict"], begun) > 100 * TOLERANCE, adapter
    assert difference(one["state_dict"], two["state_dict"]) <= TOLERANCE
    assert one["global_step"] == two["global_step"] == step
    ranks = [torch.load(f"{together}.pt.{rank}", weights_only=True) for rank in range(2)]
    assert difference(ranks[0], ranks[1]) == 0
    assert difference(ranks[0], two["state_dict"]) == 0


def assert_same_batches(alone: list[dict], *ranks: list[dict]) -> None:
    """At each position the ranks' slices, in the order of ranks, are the batch that one process sees."""
    assert [row["position"] for row in alone] == [row["position"] for row in ranks[0]]
    for whole, *parts in zip(alone, *ranks, strict=True):
        assert [key for part in parts for key in part["keys"]] == whole["keys"]
        assert [t for part in parts for t in part["t"]] == whole["t"]
        losses = [loss for part in parts for loss in part["per_sample"]]
        assert losses == pytest.approx(whole["per_sample"], abs=1e-5)


def metrics(root: pathlib.Path) -> list[dict[str, float]]:
    """The logged numbers, row by row."""
    head, *lines = (root / "logs" / "metrics.csv").read_text().splitlines()
    table = [dict(zip(head.split(","), line.split(","), strict=True)) for line in lines]
    return [{key: float(value) for key, value in row.items() if value} for row in table]


def assert_same_metrics(alone: pathlib.Path, together: pathlib.Path) -> None:
    one, two = metrics(alone), metrics(together)
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        assert b == pytest.approx(a, abs=1e-5, nan_ok=True)
    assert any("loss/val" in row for row in one) and any("loss/prior" in row for row in one)


@pytest.mark.slow
def test_two_processes_are_one_and_resume_on_one(tmp_path, tiny_model, photos, others, held_out):
    def config(name, **changes):
        given = configured(tmp_path, tiny_model, photos, others, "LoRA", name, **changes)
        return with_evaluation(given, held_out)

    alone = fit(config("alone"))
    together = fit_on_ranks(config("together", **TWO_PROCESSES))
    whole = rows(tmp_path / "alone.jsonl")
    assert_same_batches(whole, *(rows(tmp_path / "together.jsonl", rank) for rank in range(2)))
    assert_same_end(alone, together, "LoRA")
    assert_same_metrics(alone, together)
    assert not list(together.glob(".preflight-*"))
    assert len(list((together / "checkpoints").iterdir())) == 3  # two and the best

    (together / "checkpoints" / "step-000006.ckpt").unlink()
    before = len(rows(tmp_path / "together.jsonl"))
    fit(config("together"), "--ckpt_path", "last")
    assert_same_batches(whole[6:], rows(tmp_path / "together.jsonl")[before:])
    assert difference(checkpoint(alone, 6)["state_dict"], checkpoint(together, 6)["state_dict"]) <= TOLERANCE


@pytest.mark.slow
def test_two_nodes_by_environment_are_one_process(tmp_path, tiny_model, photos, others):
    alone = fit(configured(tmp_path, tiny_model, photos, others, "LoKr", "alone"))
    # A cache that neither node has yet: both fill the same folder at the same time.
    cache = {"data.cache_dir": str(tmp_path / "shared-cache")}
    together = fit_on_nodes(configured(tmp_path, tiny_model, photos, others, "LoKr", "nodes", **TWO_NODES, **cache))
    slices = [rows(tmp_path / "nodes.jsonl", rank) for rank in range(2)]
    assert_same_batches(rows(tmp_path / "alone.jsonl"), *slices)
    assert_same_end(alone, together, "LoKr")


@pytest.mark.slow
def test_nodes_with_other_photos_all_end_and_say_which(tmp_path, tiny_model, photos, others):
    """Each would train its slice of a plan of its own: one photo is gone on a node, another is not the same."""
    copy = pathlib.Path(shutil.copytree(photos, tmp_path / "copy"))
    (copy / "p4.png").unlink()
    shutil.copy(others / "p0.png", copy / "p1.png")
    nodes = [
        configured(tmp_path, tiny_model, folder, others, "LoRA", name, **TWO_NODES)
        for folder, name in ((photos, "one"), (copy, "two"))
    ]
    codes, text = started_on_nodes(*nodes)
    assert codes == [2, 2], text
    assert text.count("the ranks do not see the same data") == 2
    assert text.count("They differ in subject/p1.png, subject/p4.png.") == 2
    assert not list(tmp_path.glob("*/checkpoints"))


@pytest.mark.slow
def test_full_weights_with_a_teacher_go_on_from_one_process_on_two(tmp_path, tiny_model, photos, others):
    alone = fit(configured(tmp_path, tiny_model, photos, others, "Full", "alone"))
    copy = tmp_path / "together" / "checkpoints"
    copy.mkdir(parents=True)
    shutil.copy(alone / "checkpoints" / "step-000003.ckpt", copy)
    config = configured(tmp_path, tiny_model, photos, others, "Full", "together", **TWO_PROCESSES)
    together = fit_on_ranks(config, "--ckpt_path", "last")
    slices = [rows(tmp_path / "together.jsonl", rank) for rank in range(2)]
    assert_same_batches(rows(tmp_path / "alone.jsonl")[6:], *slices)
    assert_same_end(alone, together, "Full")


@pytest.mark.slow
def test_class_prompts_and_their_steered_weight_are_the_same_on_two_processes(tmp_path, tiny_model, photos, others):
    def config(name, **changes):
        given = configured(tmp_path, tiny_model, photos, others, "LoRA", name, **changes)
        given["data"]["datasets"][0]["class_prompt"] = ["a dog", "a photo of a dog"]
        given["trainer"]["callbacks"].append(
            {"class_path": "PriorControl", "init_args": {"target": 1e-5, "every_n_steps": 2}}
        )
        return given

    alone, together = fit(config("alone")), fit_on_ranks(config("together", **TWO_PROCESSES))
    assert_same_end(alone, together, "LoRA")
    ends = [
        next(v for k, v in checkpoint(root, 6)["callbacks"].items() if "PriorControl" in k)
        for root in (alone, together)
    ]
    assert ends[0]["weight"] == pytest.approx(ends[1]["weight"], rel=1e-3) and ends[0]["weight"] != 1.0


@pytest.mark.slow
@pytest.mark.parametrize("level", ["int8-torchao", "nf4-bnb", "int8-quanto"])
def test_a_base_in_few_bits_is_the_same_on_two_processes(tmp_path, tiny_model, photos, others, level):
    parts, stored = (tmp_path, tiny_model, photos, others, "LoRA"), {"model.base_model_precision": level}
    alone = fit(configured(*parts, "alone", **stored))
    together = fit_on_ranks(configured(*parts, "together", **stored, **TWO_PROCESSES))
    assert_same_end(alone, together, "LoRA")


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_fails_ends_all(tmp_path, tiny_model, photos, others, rank):
    config = configured(tmp_path, tiny_model, photos, others, "LoRA", "run", **TWO_PROCESSES)
    failing = {"class_path": "test_distributed.RaisesOn", "init_args": {"rank": rank}}
    process = start(merged(config, {"trainer.callbacks": [failing]}))
    # The output ends when the last process that holds it is gone, so a rank left behind would be a hang here.
    codes, text = finish(process)
    assert codes != [0]
    assert f"rank {rank} has had enough" in text


def test_a_batch_that_cannot_be_cut_equally_is_refused_with_what_fits(tmp_path, tiny_model, photos, others, capsys):
    changes = {**TWO_PROCESSES, "data.batch_size": 3}
    assert run("fit", configured(tmp_path, tiny_model, photos, others, "LoRA", "run", **changes)) == 2
    report = capsys.readouterr().err
    assert "data.batch_size is 3" in report
    assert "2, 4, 6" in report
    assert not (tmp_path / "run").exists()
