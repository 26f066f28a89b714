"""The command line of a training script."""

import argparse
import os
import sys

_EXAMPLES = """
examples:
  {script} --config-file FILE --num-gpus 4                one machine, four processes
  {script} --config-file FILE SOLVER.BASE_LR 0.001        with another value of a config key
  {script} --config-file FILE --num-machines 2 --machine-rank 0 --dist-url tcp://HOST:PORT
                                                          on each of two machines, with its rank
"""


def default_argument_parser(epilog: str | None = None) -> argparse.ArgumentParser:
    """Return a parser with the options of detectron2's training scripts.

    Args:
        epilog: text below the options; by default examples.
    """
    parser = argparse.ArgumentParser(
        epilog=epilog or _EXAMPLES.format(script=sys.argv[0]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--config-file", default="", metavar="FILE", help="YAML file of the config")
    add(
        "--resume",
        action="store_true",
        help="resume from the last checkpoint in OUTPUT_DIR, if any",
    )
    add("--eval-only", action="store_true", help="evaluate, do not train")
    add("--num-gpus", type=int, default=1, help="processes on this machine, one per GPU")
    add("--num-machines", type=int, default=1, help="machines of the run")
    add("--machine-rank", type=int, default=0, help="number of this machine, from 0")
    # A fixed port per user, not a free one: a port in use reveals processes left by another run.
    user = os.getuid() if hasattr(os, "getuid") else 1
    port = 2**15 + 2**14 + hash(user) % 2**14
    add(
        "--dist-url",
        default=f"tcp://127.0.0.1:{port}",
        help="where the processes meet: an init_method of torch.distributed, or 'auto'",
    )
    add(
        "opts",
        default=None,
        nargs=argparse.REMAINDER,
        help="config overrides, at the end of the command: KEY VALUE KEY VALUE ...",
    )
    return parser
