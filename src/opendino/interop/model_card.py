"""README.md of an exported folder: a model card with the metadata of the Hugging Face Hub."""

from __future__ import annotations

import json
from typing import Any

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
    facts = [f"- {key}: {_plain(value)}" for key, value in extra.items() if value not in (None, "")]
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
            f"RGB, upright; shorter side to {wanted['resize_px']} px ({wanted['interpolation']}, antialiased), center "
            f"crop of {wanted['image_px']} px, scaled to 0..1, mean {_plain(wanted['mean'])}, "
            f"standard deviation {_plain(wanted['std'])}.",
            "",
            "## How it was trained",
            "",
            *(facts or ["Not known."]),
            "",
            "## License",
            "",
            "Not stated. State the license here before you publish these weights.",
            "",
        ]
    )


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
