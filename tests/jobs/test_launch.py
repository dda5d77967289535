"""Launching: one job a shard, each seeing its own GPU, and only numbers come back."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from circuitcore.cli.main import run
from circuitcore.errors import InputError, PartialError, UsageError
from circuitcore.jobs import launch as launching
from circuitcore.jobs.launch import Where, launch
from circuitcore.progress import Silent


class FakeJob:
    def __init__(self, number: int, result: int | Exception) -> None:
        self.job_id, self._result = number, result

    def done(self) -> bool:
        return True

    def result(self) -> int:
        if isinstance(self._result, Exception):
            raise self._result
        return self._result


class FakeSubmitit:
    """What launch uses of submitit; remembers parameters and calls."""

    def __init__(self, cluster: str, results=(3, 2, 2, 2)) -> None:
        self.parameters: list[dict] = []
        self.calls: list[tuple] = []
        outer = self

        class Executor:
            def __init__(self, folder, cluster=None, slurm_max_num_timeout=None):
                self.cluster = outer.name

            def update_parameters(self, **parameters):
                outer.parameters.append(parameters)

            def submit(self, function, *arguments):
                outer.calls.append(arguments)
                return FakeJob(len(outer.calls), results[len(outer.calls) - 1])

            def map_array(self, function, *lists):
                return [self.submit(function, *row) for row in zip(*lists, strict=True)]

        self.name = cluster
        self.AutoExecutor = self.LocalExecutor = Executor


@pytest.fixture
def folder(tmp_path):
    manifest = {"configuration": {}, "categories": [], "options": {}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    return tmp_path


@pytest.mark.parametrize(
    ("visible", "seen"),
    [
        (None, "0 1 0 1"),
        ("", "0 1 0 1"),
        ("2,5", "2 5 2 5"),
        ("GPU-8f,GPU-1c", "GPU-8f GPU-1c " * 2),
    ],
)
def test_local_jobs_see_one_gpu_each(monkeypatch, folder, visible, seen):
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    fake = FakeSubmitit("local")
    monkeypatch.setitem(sys.modules, "submitit", fake)
    monkeypatch.setattr(launching, "_gpus", lambda: 2)
    assert launch(folder, 4, Where(timeout=60), Silent()) == [3, 2, 2, 2]
    assert {p["timeout_min"] for p in fake.parameters} == {60}
    assert [call[1:3] for call in fake.calls] == [(0, 4), (1, 4), (2, 4), (3, 4)]
    assert [call[3]["CUDA_VISIBLE_DEVICES"] for call in fake.calls] == seen.split()


def test_without_a_gpu_there_is_one_job_that_has_all_cores(monkeypatch, folder):
    fake = FakeSubmitit("local")
    monkeypatch.setitem(sys.modules, "submitit", fake)
    monkeypatch.setattr(launching, "_gpus", lambda: 0)
    assert launch(folder, None, Where(), Silent()) == [3]
    assert fake.parameters == [{"timeout_min": 1440}]
    assert fake.calls == [(str(folder), 0, 1, {}, None)]


def test_without_a_gpu_jobs_share_cores_and_memory(monkeypatch, folder):
    fake = FakeSubmitit("local")
    monkeypatch.setitem(sys.modules, "submitit", fake)
    monkeypatch.setattr(launching, "_gpus", lambda: 0)
    monkeypatch.setattr(launching, "cores", lambda: 9)
    monkeypatch.setattr("circuitcore.machine.device.free_host_memory", lambda: 100 << 30)
    launch(folder, 4, Where(), Silent())
    assert [call[3] for call in fake.calls] == [
        {"OMP_NUM_THREADS": "2", "NUMBA_NUM_THREADS": "2"}
    ] * 4
    assert [call[4] for call in fake.calls] == [20 << 30] * 4


def test_a_job_sets_its_environment_before_it_works(monkeypatch, folder):
    found = {}

    def worker(run, shard, shards, progress, **changes):
        found.update(gpu=os.environ["CUDA_VISIBLE_DEVICES"], call=(run, shard, shards, changes))
        return 5

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    monkeypatch.setattr("circuitcore.jobs.job.worker", worker)
    assert launching.work(str(folder), 1, 3, {"CUDA_VISIBLE_DEVICES": "2"}, 1000) == 5
    assert found == {"gpu": "2", "call": (folder, 1, 3, {"memory": 1000, "others": True})}


def test_nothing_before_a_job_imports_torch():
    code = "import circuitcore.jobs.launch, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_slurm_gets_one_array(monkeypatch, folder):
    fake = FakeSubmitit("slurm")
    monkeypatch.setitem(sys.modules, "submitit", fake)
    monkeypatch.setattr(launching, "_gpus", lambda: 0)
    launch(folder, 3, Where("slurm", partition="gpu"), Silent())
    assert len(fake.parameters) == 1 and len(fake.calls) == 3
    assert fake.parameters[0]["slurm_partition"] == "gpu"
    assert fake.parameters[0]["gpus_per_node"] == 1


def test_a_job_that_fails_is_named_and_the_run_can_go_on(monkeypatch, folder):
    fake = FakeSubmitit("local", results=(3, RuntimeError("trace\nout of luck")))
    monkeypatch.setitem(sys.modules, "submitit", fake)
    monkeypatch.setattr(launching, "_gpus", lambda: 0)
    with pytest.raises(PartialError, match=r"1 of 2 jobs failed(.|\n)*shard 1 .*out of luck"):
        launch(folder, 2, Where(), Silent())


def test_without_submitit_it_says_how_to_get_it(monkeypatch, folder, capsys):
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert run(["launch", str(folder)]) == 2
    assert "circuitcore[cluster]" in capsys.readouterr().err


def test_what_is_refused(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "submitit", SimpleNamespace())
    with pytest.raises(UsageError, match="'slurm'"):
        launch(tmp_path, 1, Where("slrum"), Silent())
    with pytest.raises(InputError, match="no run folder"):
        launch(tmp_path, 1, Where(), Silent())
