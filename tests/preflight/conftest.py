"""The checks of a config as a function, without a script."""

from argparse import Namespace
from collections.abc import Callable

import pytest

from ovformer.engine.stages import IMAGE, Stage
from ovformer.preflight.check_config import read_checked_config
from ovformer.preflight.report import ConfigError
from support.tiny_runs import TinyRun

OPTIONS = {
    "eval_only": False,
    "resume": False,
    "allow_older": False,
    "num_gpus": 1,
    "num_machines": 1,
    "machine_rank": 0,
    "dist_url": "auto",
}


@pytest.fixture
def find_errors(tiny_run: TinyRun) -> Callable[..., list[str]]:
    """A function that checks the tiny config and returns the errors.

    Its arguments are KEY VALUE pairs, the stage, and options of the command line by name.
    """

    def find(*opts: str, stage: Stage = IMAGE, **options: object) -> list[str]:
        args = Namespace(**{**OPTIONS, **options}, config_file=str(tiny_run.config))
        args.opts = ["OUTPUT_DIR", str(tiny_run.output), *opts]
        try:
            read_checked_config(stage, args)
        except ConfigError as error:
            return str(error).split("\n  ")[1:]
        return []

    return find
