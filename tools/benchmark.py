#!/usr/bin/env python
"""Measure parts of OVFormer against plain ways of computing the same, and check that both agree.

    python tools/benchmark.py ops
    python tools/benchmark.py video --frames 20
    python tools/benchmark.py train-step
    python tools/benchmark.py eval
    python tools/benchmark.py identities --weights output/quickstart/train/model_final.pth

Each benchmark is a module of tools/ovformer_tools/benchmarks with ``add_arguments(parser)`` and
``run(args)``, which returns the figures; its docstring says what is compared. Timings mean little
on a machine that does other work at the same time: the load is printed with them.
"""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from ovformer.arguments import choose_device, exit_on_user_error
from ovformer.files import write_text
from ovformer_tools.benchmarks import (
    attention_ops,
    identities,
    train_step,
    video_inference,
    video_scoring,
)
from ovformer_tools.benchmarks.measure import describe_machine, format_table, format_value

BENCHMARKS = {
    "ops": attention_ops,
    "train-step": train_step,
    "video": video_inference,
    "eval": video_scoring,
    "identities": identities,
}


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line; ``benchmark`` is the name of the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="benchmark", required=True, metavar="BENCHMARK")
    for name, module in BENCHMARKS.items():
        summary = module.__doc__.splitlines()[0]
        command = commands.add_parser(name, help=summary, description=summary)
        module.add_arguments(command)
        command.add_argument("--out", type=Path, help="write the figures to this JSON file")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark that the command line names."""
    parser = make_parser()
    args = parser.parse_args(argv)
    with exit_on_user_error(parser):
        run(args)


def run(args: argparse.Namespace) -> None:
    """Run one benchmark, print its figures, and write them if the command line says where."""
    load = os.getloadavg()[0]
    if "device" in args:
        args.device = choose_device(args.device)
    device = torch.device(getattr(args, "device", "cpu"))
    figures = {
        **describe_machine(device),
        "load before": load,
        **BENCHMARKS[args.benchmark].run(args),
    }
    for name, value in figures.items():
        if name != "rows":
            print(f"{name + ':':<24} {format_value(value)}")
    print(format_table(figures.get("rows", [])))
    if load > 0.5 * (os.cpu_count() or 1):
        print("The machine was busy: repeat this when it is idle.")
    if args.out:
        write_text(args.out, json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
