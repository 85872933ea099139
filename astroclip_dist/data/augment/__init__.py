"""Batched augmentation of images on the device, keyed by sample: see docs/augmentation.md."""

from astroclip_dist.data.augment.multi_crop import MultiCrop, MultiCropPlan, multi_crop, plan_of
from astroclip_dist.data.augment.views import augment

__all__ = ["MultiCrop", "MultiCropPlan", "augment", "multi_crop", "plan_of"]
