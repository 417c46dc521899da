"""Images → features, and what evaluations do with features alike."""

from opendino.features.crops import extract as extract
from opendino.features.crops import pixels as pixels
from opendino.features.crops import settle as settle
