"""The options of the training scripts, and `python -m ovformer.d2`."""

import re
import subprocess
import sys

import ovformer.d2 as d2
from ovformer.d2 import comm, create_ddp_model, default_argument_parser


def test_defaults() -> None:
    args = vars(default_argument_parser().parse_args([]))
    assert re.fullmatch(r"tcp://127\.0\.0\.1:\d{5}", args.pop("dist_url"))
    assert args == {
        "config_file": "",
        "resume": False,
        "eval_only": False,
        "num_gpus": 1,
        "num_machines": 1,
        "machine_rank": 0,
        "opts": [],
    }


def test_all_options() -> None:
    command = (
        "--config-file a.yaml --resume --eval-only --num-gpus 4 --num-machines 2 --machine-rank 1 "
        "--dist-url tcp://host:1 SOLVER.BASE_LR 0.1 --MODEL.X 3"
    )
    assert vars(default_argument_parser().parse_args(command.split())) == {
        "config_file": "a.yaml",
        "resume": True,
        "eval_only": True,
        "num_gpus": 4,
        "num_machines": 2,
        "machine_rank": 1,
        "dist_url": "tcp://host:1",
        "opts": ["SOLVER.BASE_LR", "0.1", "--MODEL.X", "3"],
    }


def test_help_ends_with_examples_or_what_is_given() -> None:
    assert "xamples:\n" in default_argument_parser().format_help()
    assert default_argument_parser("two\nlines").format_help().endswith("two\nlines\n")


def test_single_process_needs_no_group() -> None:
    assert (comm.get_world_size(), comm.get_rank()) == (1, 0)
    assert comm.get_local_rank() == 0
    assert comm.is_main_process()
    comm.synchronize()
    data = object()
    assert comm.all_gather(data) == comm.gather(data) == [data]
    assert 0 <= comm.shared_random_seed() < 2**31
    assert create_ddp_model(data) is data


def test_report_names_the_back_end_and_every_origin() -> None:
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "ovformer.d2"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"back-end: {d2.BACKEND} (")
    assert re.search(r"^torch +\d+\.\d+", result.stdout, re.M)
    origins = dict(re.findall(r"^(\w+) +(\S+)", result.stdout.split("\n\n", 1)[1], re.M))
    assert sorted(origins) == sorted(d2.__all__)
    package = "detectron2." if d2.BACKEND == "detectron2" else "ovformer.d2.builtin."
    assert origins["TrainerBase"].startswith(package)
    assert origins["comm"].startswith(package)
    assert origins["c2_xavier_fill"] == "fvcore.nn.weight_init"
