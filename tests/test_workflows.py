"""The workflows: linted, of the Pythons that are promised, and of commands that exist."""

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
LINTER = shutil.which("actionlint", path=str(Path(sys.executable).parent))


def jobs(name: str) -> dict:
    text = (ROOT / ".github" / "workflows" / f"{name}.yml").read_text()
    return yaml.safe_load(text)["jobs"]


def commands(job: dict) -> list[str]:
    """Every line that a job runs."""
    return [line for step in job["steps"] for line in step.get("run", "").splitlines() if line]


@pytest.mark.skipif(LINTER is None, reason="actionlint has a wheel for x86-64 Linux")
def test_actionlint_finds_nothing():
    done = subprocess.run([LINTER, *map(str, WORKFLOWS)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.stem for path in WORKFLOWS} == {"ci", "gpu", "release"}


@pytest.mark.skipif(LINTER is None, reason="actionlint has a wheel for x86-64 Linux")
def test_actionlint_finds_what_is_wrong(tmp_path):
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(
        text.replace("matrix.python }}", "matrix.pyton }}").replace("runs-on", "run-on", 1)
    )
    done = subprocess.run([LINTER, str(wrong)], capture_output=True, text=True)
    assert done.returncode and "pyton" in done.stdout and "run-on" in done.stdout


def test_the_cpu_job_runs_every_python_with_and_without_triton():
    test = jobs("ci")["test"]
    matrix = test["strategy"]["matrix"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    promised = re.findall(r"3\.\d+(?=\")", str(project["classifiers"]).replace("'", '"'))
    assert matrix == {"python": promised, "triton": ["with", "without"]}
    assert test["env"] == {"CI_TRITON": "${{ matrix.triton }}"}
    assert commands(test) == [".ci/run"]
    assert "CI_TRITON:-with" in (ROOT / ".ci" / "run").read_text()


def test_the_gpu_job_requires_a_gpu_and_keeps_what_it_finds():
    job = jobs("gpu")["gpu"]
    assert job["env"]["CIRCUITCORE_REQUIRE_GPU"] == "1"
    run = "\n".join(commands(job))
    for part in ("circuitcore doctor", "pytest -m gpu", "--benchmark-json", "--keep",
                 "bench compare results/bench.json --if-kept --fail-over", "nsys"):  # fmt: skip
        assert part in run
    last = job["steps"][-1]
    assert last["if"] == "always()" and last["with"]["path"] == "results/"


@pytest.mark.parametrize("name", ["ci", "gpu", "release"])
def test_every_verb_and_option_of_a_command_exists(name):
    """As far as a command is circuitcore's own: what --help does not know is refused here."""
    from command import call

    for job in jobs(name).values():
        for line in commands(job):
            if not re.search(r"\bcircuitcore [a-z]", line):
                continue
            words = shlex.split(line.split("circuitcore ", 1)[1].split("|")[0])
            verb, asked = words[0], [w for w in words if w.startswith("--") and w != "--"]
            if words[:2] == ["bench", "compare"]:
                known = call("bench", "compare", "--help").stdout
            elif verb == "bench":  # pytest's own, and those of bench/conftest.py
                known = "--benchmark-json " + (ROOT / "bench" / "conftest.py").read_text()
            else:
                known = call(verb, "--help").stdout
            assert all(option.partition("=")[0] in known for option in asked), line


def test_wheel_and_sdist_are_made_by_the_script_that_is_tested():
    for workflow, job in (("ci", "release"), ("release", "build")):
        assert ".ci/release dist" in commands(jobs(workflow)[job])
