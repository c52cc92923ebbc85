"""The names that job files have for transforms."""

from data_pipeline.augment.colour import Brightness, ChannelShift, Rescale
from data_pipeline.augment.crops import CenterCrop, RandomResizedCrop, Resize
from data_pipeline.augment.erase import Cutout
from data_pipeline.augment.geometry import Geometry, Rotation, Shear, Translate, Zoom
from data_pipeline.augment.mixing import CutMix, Mixup
from data_pipeline.augment.noise import GaussianNoise
from data_pipeline.augment.series import Scaling, TimeShift
from data_pipeline.augment.targets import LabelNoise, LabelSmoothing, TargetNoise
from data_pipeline.augment.transform import Transform
from data_pipeline.augment.whitening import SamplewiseStandardize, ZCAWhitening
from data_pipeline.augment.windows import Flip, Shift, VerticalFlip

TRANSFORMS: dict[str, type[Transform]] = {
    "resize": Resize,
    "center_crop": CenterCrop,
    "random_resized_crop": RandomResizedCrop,
    "shift": Shift,
    "flip": Flip,
    "vertical_flip": VerticalFlip,
    "rotation": Rotation,
    "translate": Translate,
    "shear": Shear,
    "zoom": Zoom,
    "geometry": Geometry,
    "channel_shift": ChannelShift,
    "brightness": Brightness,
    "rescale": Rescale,
    "samplewise_standardize": SamplewiseStandardize,
    "zca_whitening": ZCAWhitening,
    "cutout": Cutout,
    "mixup": Mixup,
    "cutmix": CutMix,
    "gaussian_noise": GaussianNoise,
    "time_shift": TimeShift,
    "scaling": Scaling,
    "label_smoothing": LabelSmoothing,
    "label_noise": LabelNoise,
    "target_noise": TargetNoise,
}
"""By its name in `[data.augment.NAME]`, each transform; the table's entries are its arguments."""
