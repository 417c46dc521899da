"""Entry point of torch.hub: torch.hub.load("OWNER/opendino", "load", "hf:USER/NAME")"""

import sys
from pathlib import Path

dependencies = ["msgspec", "numpy", "PIL", "safetensors", "simplejpeg", "tifffile", "timm", "torch", "yaml"]

sys.path.append(str(Path(__file__).parent / "src"))  # an installed opendino comes first

from opendino.loading import load  # noqa: E402, F401
