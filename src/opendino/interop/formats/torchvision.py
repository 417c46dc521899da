"""ResNets by torchvision's keys: its published files, and whatever else keeps to them (timm's; DINO v1's backbone)."""

from __future__ import annotations

from opendino.interop import architectures
from opendino.interop.checkpoint_files import Checkpoint, Imported
from opendino.models.load import preprocessing


def recognizes(checkpoint: Checkpoint) -> bool:
    """The keys of a ResNet, and nobody says which model of timm it is."""
    return architectures.is_resnet(checkpoint.state) and "architecture" not in (checkpoint.config or {})


def read(checkpoint: Checkpoint) -> Imported:
    """ResNet-18, 34, 50, 101 or 152; its `fc`, if there is one, becomes the classifier.

    Raises:
        UserError: It is another ResNet, a key is unknown or missing, a shape wrong, or a number not finite.
    """
    source = f"'{checkpoint.path}'"
    backbone = {key: value for key, value in checkpoint.state.items() if not key.startswith("fc.")}
    network = architectures.resnet(backbone, source)
    classifier = architectures.classifier(checkpoint.state, "fc.", source)
    about = f"{network.name} by torchvision's keys"
    if classifier is None:
        return Imported({"teacher": network}, preprocessing(), about)
    resized = {**preprocessing(), "interpolation": "bilinear"}  # as torchvision evaluates its own
    return Imported({"teacher": network}, resized, f"{about}, {classifier.out_features:,} classes", classifier)
