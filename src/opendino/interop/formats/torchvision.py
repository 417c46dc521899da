"""Import ResNets by torchvision's keys: its published files, and others with these keys (timm, DINO v1)."""

from __future__ import annotations

from opendino.interop import architectures
from opendino.interop.checkpoint_files import Checkpoint, Imported
from opendino.models.load import preprocessing


def recognizes(checkpoint: Checkpoint) -> bool:
    """ResNet keys, without a timm model name."""
    return architectures.is_resnet(checkpoint.state) and "architecture" not in (checkpoint.config or {})


def read(checkpoint: Checkpoint) -> Imported:
    """Read a ResNet-18, 34, 50, 101 or 152; its `fc`, if there is one, becomes the classifier.

    Raises:
        UserError: It is another ResNet, a key is unknown or missing, a shape is wrong, or a value is not finite.
    """
    source = f"'{checkpoint.path}'"
    backbone = {key: value for key, value in checkpoint.state.items() if not key.startswith("fc.")}
    network = architectures.resnet(backbone, source)
    classifier = architectures.classifier(checkpoint.state, "fc.", source)
    about = f"{network.name} by torchvision's keys"
    if classifier is None:
        return Imported({"teacher": network}, preprocessing(), about)
    resized = {**preprocessing(), "interpolation": "bilinear"}  # the interpolation of torchvision's evaluation
    return Imported({"teacher": network}, resized, f"{about}, {classifier.out_features:,} classes", classifier)
