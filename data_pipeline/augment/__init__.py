"""Batch-wise transforms whose parameters are drawn per sample, keyed by the sample's position."""

from data_pipeline.augment.colour import Brightness, ChannelShift, Rescale
from data_pipeline.augment.crops import CenterCrop, RandomResizedCrop, Resize
from data_pipeline.augment.draw import Draw
from data_pipeline.augment.erase import Cutout
from data_pipeline.augment.geometry import Geometry, Rotation, Shear, Translate, Zoom
from data_pipeline.augment.mixing import CutMix, Mixup
from data_pipeline.augment.noise import GaussianNoise
from data_pipeline.augment.registry import TRANSFORMS
from data_pipeline.augment.series import Scaling, TimeShift
from data_pipeline.augment.targets import LabelNoise, LabelSmoothing, TargetNoise
from data_pipeline.augment.transform import (
    AfterScaling,
    Cropping,
    InputTransform,
    Samples,
    Transform,
)
from data_pipeline.augment.whitening import SamplewiseStandardize, ZCAWhitening
from data_pipeline.augment.windows import Flip, Shift, VerticalFlip

__all__ = [
    "TRANSFORMS",
    "AfterScaling",
    "Brightness",
    "CenterCrop",
    "ChannelShift",
    "Cropping",
    "CutMix",
    "Cutout",
    "Draw",
    "Flip",
    "GaussianNoise",
    "Geometry",
    "InputTransform",
    "LabelNoise",
    "LabelSmoothing",
    "Mixup",
    "RandomResizedCrop",
    "Rescale",
    "Resize",
    "Rotation",
    "Samples",
    "SamplewiseStandardize",
    "Scaling",
    "Shear",
    "Shift",
    "TargetNoise",
    "TimeShift",
    "Transform",
    "Translate",
    "VerticalFlip",
    "ZCAWhitening",
    "Zoom",
]
