"""The options of the training scripts, and `python -m ovformer.d2`."""

import re
import subprocess
import sys

import pytest

import ovformer.d2 as d2
from ovformer.d2 import comm, create_ddp_model, default_argument_parser

DEFAULTS = {
    "config_file": "",
    "resume": False,
    "eval_only": False,
    "num_gpus": 1,
    "num_machines": 1,
    "machine_rank": 0,
    "opts": [],
}
ALL = (
    "--config-file a.yaml --resume --eval-only --num-gpus 4 --num-machines 2 --machine-rank 1 "
    "--dist-url tcp://host:1 SOLVER.BASE_LR 0.1 --MODEL.X 3"
)
GIVEN = {
    "config_file": "a.yaml",
    "resume": True,
    "eval_only": True,
    "num_gpus": 4,
    "num_machines": 2,
    "machine_rank": 1,
    "opts": ["SOLVER.BASE_LR", "0.1", "--MODEL.X", "3"],
}


@pytest.mark.parametrize(
    ("command", "expected", "url"),
    [("", DEFAULTS, r"tcp://127\.0\.0\.1:\d{5}"), (ALL, GIVEN, "tcp://host:1")],
)
def test_options(command, expected, url) -> None:
    args = vars(default_argument_parser().parse_args(command.split()))
    assert re.fullmatch(url, args.pop("dist_url"))
    assert args == expected


def test_help_ends_with_examples_or_what_is_given() -> None:
    assert "xamples:\n" in default_argument_parser().format_help()
    assert default_argument_parser("two\nlines").format_help().endswith("two\nlines\n")


def test_single_process_needs_no_group() -> None:
    assert (comm.get_world_size(), comm.get_rank(), comm.get_local_rank()) == (1, 0, 0)
    assert comm.is_main_process()
    comm.synchronize()
    data = object()
    assert comm.all_gather(data) == comm.gather(data) == [data]
    assert 0 <= comm.shared_random_seed() < 2**31
    assert create_ddp_model(data) is data


def test_report_names_the_back_end_and_every_origin() -> None:
    line = [sys.executable, "-W", "ignore", "-m", "ovformer.d2"]
    result = subprocess.run(line, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"back-end: {d2.BACKEND} (")
    assert re.search(r"^torch +\d+\.\d+", result.stdout, re.M)
    origins = dict(re.findall(r"^(\w+) +(\S+)", result.stdout.split("\n\n", 1)[1], re.M))
    assert sorted(origins) == sorted(d2.__all__)
    assert origins.pop("BACKEND") == repr(d2.BACKEND)
    package = "detectron2" if d2.BACKEND == "detectron2" else "ovformer"
    assert {origin.split(".")[0] for origin in origins.values()} == {package, "fvcore"}
