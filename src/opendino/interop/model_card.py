"""README.md of an exported folder, a model card as the Hugging Face hub reads it. It states what is known, no more."""

from __future__ import annotations

import json
from typing import Any

from opendino.models.load import Model


def card(model: Model, library: str, loading: str, remarks: str = "") -> str:
    """Markdown with the hub's front matter.

    Args:
        model: What was exported.
        library: `library_name` of the hub.
        loading: Python that loads it, a few lines.
        remarks: What a user of this layout has to know.
    """
    wanted, extra = model.preprocessing, dict(model.description.get("extra", {}))
    millions = sum(weight.numel() for weight in model.backbone.parameters()) / 1e6
    told = [f"- {key}: {_plain(value)}" for key, value in extra.items() if value not in (None, "")]
    return "\n".join(
        [
            "---",
            f"library_name: {library}",
            "pipeline_tag: image-feature-extraction",
            "tags: [opendino, self-supervised-learning]",
            "# license: state it here before you publish",
            "---",
            "",
            f"# {model.backbone.name}",
            "",
            f"An image encoder of {millions:.1f} million weights: an image in, {model.backbone.embed_dim} numbers out. "
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
            f"RGB, upright; shorter side to {wanted['resize_px']} px ({wanted['interpolation']}, antialiased), center "
            f"crop of {wanted['image_px']} px, scaled to 0..1, mean {_plain(wanted['mean'])}, "
            f"standard deviation {_plain(wanted['std'])}.",
            "",
            "## How it was trained",
            "",
            *(told or ["Not known."]),
            "",
            "## License",
            "",
            "Not stated. Whoever publishes these weights says here what others may do with them.",
            "",
        ]
    )


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
