"""Compute features of images, and functions on features that several evaluations share."""

from opendino.features.crop_features import extract as extract
from opendino.features.crop_features import pixels as pixels
from opendino.features.crop_features import recalibrate_batch_norm as recalibrate_batch_norm
