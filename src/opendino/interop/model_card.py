"""README.md of an exported folder: a model card with the metadata of the Hugging Face Hub."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from opendino.data.readers.multi_page_files import describe
from opendino.models.image_reading import ImageReading
from opendino.models.load import Model


def card(model: Model, library: str, loading: str, remarks: str = "") -> str:
    """Model card in Markdown with YAML front matter.

    Args:
        model: The exported model.
        library: `library_name` for the Hub.
        loading: Python code that loads the model, a few lines.
        remarks: Notes for users of this file format.
    """
    wanted, extra = model.preprocessing, dict(model.description.get("extra", {}))
    millions = sum(weight.numel() for weight in model.backbone.parameters()) / 1e6
    license_id = extra.pop("license", None)
    facts = [f"- {key}: {_plain(value)}" for key, value in extra.items() if value not in (None, "")]
    if {"method", "data", "images", "step"} <= extra.keys():
        sentence = (
            "Trained by {method} on {images:,} images of {data}, for {step:,} steps; the images are not part of this."
        )
        facts = [sentence.format(**extra), "", *facts]
    return "\n".join(
        [
            "---",
            f"library_name: {library}",
            "pipeline_tag: image-feature-extraction",
            "tags: [opendino, self-supervised-learning]",
            f"license: {license_id}" if license_id else "# license: state it here before you publish",
            "---",
            "",
            f"# {model.backbone.name}",
            "",
            f"An image encoder with {millions:.1f} million weights; feature size: {model.backbone.embed_dim}. "
            f"Exported by opendino from the {model.which} of a model with fingerprint {model.fingerprint}.",
            "",
            "## Load it",
            "",
            "```python",
            loading,
            "```",
            "",
            *([remarks, ""] if remarks else []),
            "## Images",
            "",
            images_as_text(wanted),
            "",
            "## How it was trained",
            "",
            *(facts or ["Not known."]),
            "",
            "## License",
            "",
            license_id or "Not stated. State the license here before you publish these weights.",
            "",
        ]
    )


def images_as_text(preprocessing: Mapping[str, Any]) -> str:
    """What has to be done with images before the network, one line."""
    reading = ImageReading.of(preprocessing)
    kind, scaled = "RGB", "scaled to 0..1"
    if reading.names:
        kind = describe(reading.names)
        if isinstance(reading.intensity, tuple):
            pairs = list(zip(reading.intensity[::2], reading.intensity[1::2], strict=True))
            ranges = ", ".join(f"{low:g} to {high:g}" for low, high in pairs)
            scaled = f"values {ranges} scaled to 0..1 and clipped"
        elif reading.intensity == "per-image":
            scaled = "0.1 to 99.9 % of the values of each channel of each image scaled to 0..1 and clipped"
        else:
            scaled = "the full range of the sample type scaled to 0..1"
    each = "; each channel by itself, the features joined in this order" if reading.channel_mode == "separate" else ""
    return (
        f"{kind}, upright; {scaled}; shorter side to {preprocessing['resize_px']} px "
        f"({preprocessing['interpolation']}, antialiased), center crop of {preprocessing['image_px']} px, "
        f"mean {_plain(preprocessing['mean'])}, standard deviation {_plain(preprocessing['std'])}{each}."
    )


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
