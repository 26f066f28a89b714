"""What OVFormer needs of detectron2, for machines where detectron2 is not installed.

The names, arguments, defaults, random draws and exception types are detectron2's, so that code
written against :mod:`ovformer.d2` runs unchanged on either. It rests on fvcore, iopath, yacs,
torchvision and pycocotools. Import the names from :mod:`ovformer.d2`, which decides between the
two; nothing here imports from the rest of the package.
"""
