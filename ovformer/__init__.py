"""OVFormer: open-vocabulary video instance segmentation."""

__version__ = "0.1.0"
