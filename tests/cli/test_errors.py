"""What the command line says of an error: one message, the exit code of its kind, no traceback."""

import errno
import shutil

import pytest

import circuitcore
from circuitcore import errors
from circuitcore.cli.cluster.verbs import parse_shard
from circuitcore.cli.main import run


def failing(monkeypatch, error: BaseException) -> None:
    def sweep(**_):
        raise error

    monkeypatch.setattr(circuitcore, "sweep", sweep, raising=False)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.UsageError("what, where, how"), 2),
        (errors.InputError("what, where, how"), 3),
        (errors.PartialError("what, where, how"), 4),
        (errors.DeviceError("what, where, how"), 5),
    ],
)
def test_an_error_a_user_can_mend(monkeypatch, capsys, error, code):
    failing(monkeypatch, error)
    assert run(["sweep", "--format", "json"]) == code
    said = capsys.readouterr()
    assert said.out == "" and said.err == "error: what, where, how\n"


def test_a_bug_is_called_a_bug(monkeypatch, capsys):
    failing(monkeypatch, ZeroDivisionError("oh"))
    assert run(["sweep"]) == 1
    said = capsys.readouterr().err
    assert "ZeroDivisionError: oh" in said and "Traceback" in said
    assert "this is a bug of circuitcore" in said


def test_out_of_memory(monkeypatch, capsys):
    failing(monkeypatch, MemoryError("12 GB"))
    assert run(["sweep"]) == 5
    assert "--memory" in capsys.readouterr().err


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO])
def test_a_disk_that_gives_up(monkeypatch, capsys, number):
    failing(monkeypatch, OSError(number, "no more", "/runs/x"))
    assert run(["sweep"]) == 4
    said = capsys.readouterr().err
    assert "/runs/x" in said and "run the same command again" in said and "Traceback" not in said


def test_interrupted(monkeypatch, capsys):
    failing(monkeypatch, KeyboardInterrupt())
    assert run(["sweep"]) == 130
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["sweeep"], ["no command 'sweeep'", "'sweep'", "circuitcore --help"]),
        (["sweep", "--threshhold", "1"], ["no option --threshhold", "'--threshold'"]),
        (["overlap", "run", "--foramt", "csv"], ["--foramt", "'--format'"]),
        (["overlap"], ["RUN"]),
        (["ls", "modles"], ["models"]),
        (["sweep", "--magnitude"], ["--magnitude"]),
        (["overlap", "run", "--format", "yaml"], ["--format yaml", "jsonl"]),
        (["worker", "run", "--shard", "3/3"], ["--shard 3/3", "0/4"]),
        (["launch", "run", "--cluster", "slrum"], ["--cluster slrum", "'slurm'"]),
        (["kernels", "--target", "sm_91"], ["--target sm_91", "sm_90"]),
        (["extract", "run"], ["--threshold"]),
    ],
)
def test_usage(capsys, arguments, parts):
    assert run(arguments) == 2
    said = capsys.readouterr()
    assert said.out == "" and "Traceback" not in said.err
    assert all(part in said.err for part in parts), said.err


def test_no_verb_shows_the_help(capsys):
    assert run([]) == 2
    said = capsys.readouterr()
    assert said.out == "" and "Commands:" in said.err


def test_shards():
    assert parse_shard("2/8") == (2, 8)
    for text in ("8/8", "-1/2", "1", "a/b", "1/0"):
        with pytest.raises(errors.UsageError):
            parse_shard(text)


def test_fault_42_config_file_all_errors_at_once(tmp_path, capsys):
    file = tmp_path / "run.toml"
    file.write_text('levles = 16\nmagnitude = 3\nthreshold = "high"\n')
    assert run(["sweep", "--config", str(file)]) == 2
    said = capsys.readouterr().err
    for part in (str(file), "'levles'", "'levels'", "magnitude", "threshold"):
        assert part in said
    assert "Traceback" not in said


def test_fault_42_no_config_file_and_no_toml(tmp_path, capsys):
    assert run(["sweep", "--config", str(tmp_path / "none.toml")]) == 2
    assert "no such file" in capsys.readouterr().err
    (tmp_path / "bad.toml").write_text("levels = = 3")
    assert run(["sweep", "--config", str(tmp_path / "bad.toml")]) == 2
    assert "not a readable TOML file" in capsys.readouterr().err


def test_an_unknown_preset_names_the_nearest(capsys):
    assert run(["sweep", "--preset", "papr"]) == 2
    assert "'paper'" in capsys.readouterr().err


@pytest.mark.parametrize("levels", ["0,1.2", "300", "linear:300", "1", "-0.5,0.5", "many"])
def test_fault_43_levels(capsys, levels):
    assert run(["sweep", f"--levels={levels}"]) == 2
    assert "--levels" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["overlap", "controls", "report", "verify", "evaluate"])
def test_a_folder_that_is_no_run(tmp_path, capsys, verb):
    assert run([verb, str(tmp_path)]) == 3
    said = capsys.readouterr().err
    assert str(tmp_path) in said and "Traceback" not in said


def test_profile_without_nsys(monkeypatch, capsys):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert run(["profile", "--profiler", "nsys", "--threshold", "0.8"]) == 5
    assert "nsys" in capsys.readouterr().err


def test_bench_needs_the_source_tree(monkeypatch, tmp_path, capsys):
    import circuitcore

    monkeypatch.setattr(circuitcore, "__file__", str(tmp_path / "circuitcore" / "__init__.py"))
    assert run(["bench"]) == 3
    assert "clone the source" in capsys.readouterr().err


def test_fault_13_a_category_the_model_does_not_have(capsys, tmp_path):
    assert run(["sweep", "Trousr", "--out", str(tmp_path / "r")]) == 2
    said = capsys.readouterr().err
    assert "'Trousr'" in said and "'Trouser'" in said
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("flags", [["--gpu", "77"], ["--device", "cuda:77"]])
def test_fault_23_a_gpu_that_is_not_there(capsys, flags):
    assert run(["sweep", *flags]) == 5
    said = capsys.readouterr().err
    assert "cuda:77" in said and "cpu" in said


def test_a_device_that_is_no_device(capsys):
    assert run(["sweep", "--device", "tpu"]) == 2
    assert "cuda:0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "code", "part"),
    [
        ("tv:alexnett", 2, "'alexnet'"),
        ("tv:alexnet@V9", 2, "IMAGENET1K_V1"),
        ("alexnet", 2, "tv:NAME@WEIGHTS"),
        ("file:none.safetensors", 2, "--arch"),
    ],
)
def test_models_that_are_refused(capsys, model, code, part):
    assert run(["sweep", "--model", model]) == code
    assert part in capsys.readouterr().err


ANEW = ["threshold: 0.9 there, 0.5 now", "'circuitcore extract runs/first' chooses anew"]


@pytest.mark.parametrize(
    ("arguments", "code", "parts"),
    [
        (["stability", "Trousr"], 2, ["no category 'Trousr'", "'Trouser'", "nor is", "run folder"]),
        (
            ["stability", "runs/frist"],
            3,
            ["runs/frist: no run folder", "did you mean 'runs/first'"],
        ),
        (["stability", "runs"], 3, ["runs: no run folder", "there are runs in it: runs/first"]),
        (["report", "first"], 3, ["no such folder", "did you mean 'runs/first'"]),
        (["overlap", "nothing"], 3, ["'circuitcore ls runs' lists"]),
        (["sweep", "runs/first"], 2, ["'runs/first': it is a run folder", "--out runs/first"]),
        (["sweep", "Bag,Trouser"], 2, ["several are words of their own, Bag Trouser"]),
        (["sweep", "--threshold", "90%"], 2, ["--threshold: a fraction is needed: 90 % is 0.9"]),
        (["sweep", "--threshold", "80"], 2, ["less than or equal to 1: 80 % is 0.8"]),
        (["sweep", "--memory", "8"], 2, ["a number alone is bytes", "8G"]),
        (["sweep", "--model", "resnet50"], 2, ["did you mean 'tv:resnet50'?"]),
        (["sweep", "-o", "runs/first", "--threshold", "0.5"], 3, ANEW),
        (["ls", "run"], 2, ["ls run: one of models, devices", "did you mean 'runs'?"]),
        (["ls", "runs", "--root", "none"], 3, ["--root none: no such folder"]),
        (["reproduce", "papr"], 2, ["did you mean 'paper'?"]),
        (["lesion", "runs/first", "--kind", "privat"], 2, ["did you mean 'private'?"]),
        (["evaluate", "runs/first", "Bag"], 2, ["takes no further argument: (Bag)"]),
        (
            ["lesion", "runs/first", "--shared", "many"],
            2,
            ["'--shared': should be a valid integer"],
        ),
        (["help"], 2, ["no command 'help': it is circuitcore --help"]),
        (["help", "sweep"], 2, ["it is circuitcore sweep --help"]),
        (["version"], 2, ["it is circuitcore --version"]),
    ],
)
def test_what_a_newcomer_tries(small, tmp_path, monkeypatch, capsys, arguments, code, parts):
    """The message names what was meant."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "first").symlink_to(small.folder)
    monkeypatch.chdir(tmp_path)
    if "-o" in arguments:  # the very sweep of `small`, with another threshold
        arguments = [*small.arguments, *arguments[1:]]
    assert run(arguments) == code
    said = capsys.readouterr()
    assert said.out == "" and "Traceback" not in said.err
    assert all(part in said.err for part in parts), said.err
