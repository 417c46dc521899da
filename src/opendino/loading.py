"""`opendino.load`: a trained model that also takes folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeGuard, overload

from torch import Tensor

from opendino import sharing
from opendino.core.contracts import Source
from opendino.data.decode import SUFFIXES
from opendino.data.sources import python
from opendino.embedded_images import EmbeddedImages
from opendino.engine.run_result import Result
from opendino.features.feature_table import table
from opendino.interop import hub_push
from opendino.models import load as models
from opendino.models.load import ImageInput, Images, Model


class ImageModel(Model):
    """A trained model; `embed` also takes a folder, or any other DATA of the command line.

    Attributes:
        name: MODEL as it was given to `load`.
    """

    name: str

    @overload
    def embed(self, images: Source, batch: int = 64) -> EmbeddedImages: ...
    @overload
    def embed(self, images: str | Path, batch: int = 64) -> Any: ...
    @overload
    def embed(self, images: Images, batch: int = 64) -> Tensor: ...
    @overload
    def embed(self, images: Any, batch: int = 64) -> Any: ...
    def embed(self, images: Images | Source | Any, batch: int = 64) -> Tensor | EmbeddedImages:
        """Compute features, `batch` images at a time; not L2-normalized.

        Args:
            images: One or several images, see `models.load.Model`; or a folder, an archive, a list of paths, any other
                DATA of the command line, a `Source`, or a map-style dataset as for `opendino.train`.
            batch: Images per forward pass.

        Returns:
            Features float32 `[B D]` on the model's device; for a folder, other DATA or a dataset an `EmbeddedImages`,
            which can be searched.

        Raises:
            UsageError: It is none of these.
            UserError: An image, or all images of a folder, cannot be read.
        """
        if isinstance(images, str | Path) and Path(images).suffix.lower() not in SUFFIXES:
            images = self.reading.open_images(str(images))
        if _are_images(images):
            return super().embed(images, batch)
        if not isinstance(images, Source):
            images = self.reading.images(python.PythonSource(images))
        found = table(self, images, batch=batch)
        return EmbeddedImages(self, images, found.indices.tolist(), found.features, found.labels, list(found.bad))

    def push_to_hub(self, repository: str, *, license: str | None = None, private: bool = False) -> str:  # noqa: A002
        """Upload the model to the Hugging Face Hub, with a model card, see `opendino.sharing.push`.

        Args:
            repository: USER/NAME; created if it does not exist. `opendino.load("hf:USER/NAME")` loads it again.
            license: Identifier of the Hub, e.g. "cc-by-4.0".
            private: Make the repository private if it is created.

        Returns:
            URL of the repository.

        Raises:
            UsageError: The name or the license is not valid.
            UserError: There is no token, or the upload failed.
        """
        which = None if hub_push.is_exported(Path(self.name).expanduser()) else self.which
        return sharing.push(self.name, repository, license=license, which=which, private=private)


def load(model: str | Path | Result, which: str | None = None, *, classifier: bool = False) -> ImageModel:
    """Load a trained model on the CPU, in eval mode.

    Args:
        model: A run folder or the result of a run, an imported or exported model folder, `timm:NAME`, `hf:USER/NAME` of
            the Hugging Face Hub, or the http(s) address of an exported folder.
        which: "teacher" or "student". None is the default network: the teacher, except where a student was distilled
            from a frozen teacher.
        classifier: Also load the linear classifier of the default network.

    Raises:
        UsageError: `which` is neither, or timm has no such model.
        UserError: The folder holds no model, no such network or no classifier, or its files do not match.
    """
    name = model.run if isinstance(model, Result) else str(model)
    found = models.load(name, which, classifier=classifier)
    loaded = ImageModel(found.backbone, found.preprocessing, found.description, found.classifier, found.which)
    loaded.name = name
    return loaded


def _are_images(images: Any) -> TypeGuard[Images]:
    """Whether it is one image or a list of images, not a dataset whose items may also have labels."""
    several = isinstance(images, list | tuple) and all(isinstance(each, ImageInput) for each in images)
    return several or isinstance(images, ImageInput)
