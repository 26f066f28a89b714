"""The part of detectron2 that OVFormer uses, for machines without detectron2.

The names, arguments, defaults, random draws and exception types are detectron2's, so code
that imports from :mod:`ovformer.d2` runs unchanged on either. A name is here only if the package,
a tool or a script reaches it. Import the names from :mod:`ovformer.d2`, which chooses the back-end;
nothing here imports from the rest of the package.
"""
