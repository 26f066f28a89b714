#!/usr/bin/env python
"""Remove the annotations of rare categories from an LVIS annotation file.

    python tools/remove_lvis_rare.py --ann datasets/lvis/lvis_v1_train.json

writes datasets/lvis/lvis_v1_train_norare.json: the training set in which rare categories are novel.
Images and categories stay.
"""

from collections.abc import Sequence

from ovformer_tools.category_files import make_parser, without_rare, write_kept


def main(argv: Sequence[str] | None = None) -> None:
    """Write the annotation file without annotations of rare categories."""
    out = "beside --ann, with _norare in its name"
    parser = make_parser(__doc__, "datasets/lvis/lvis_v1_train.json", out)
    write_kept(parser, argv, lambda stem: f"{stem}_norare.json", without_rare)


if __name__ == "__main__":
    main()
