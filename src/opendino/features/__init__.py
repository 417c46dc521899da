"""Images → features, and what evaluations do with features alike."""

from opendino.features.crop_features import extract as extract
from opendino.features.crop_features import pixels as pixels
from opendino.features.crop_features import recalibrate_batch_norm as recalibrate_batch_norm
