"""Reads the exports of annotation tools, and converts them to YouTube-VIS JSON.

Each format is a file with one function that returns a list of :class:`~.tracks.AnnotatedVideo` and
the names of the classes: :mod:`~.cvat`, :mod:`~.label_studio` and :mod:`~.coco_frames`.
``tools/convert_annotations.py`` is the command.
"""
