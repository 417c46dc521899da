"""From labels of a few images to the classes of all: a classifier with its estimated accuracy, and its predictions."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from opendino.data.source_files import cell
from opendino.features.classification_metrics import accuracy
from opendino.features.logistic_regression import CrossValidated
from opendino.models.classifier import Classifier
from opendino.models.feature_tokens import Tokens

MOST_CROSS_VALIDATED = 10_000
"""Number of labels up to which a classifier is a cross-validated logistic regression; above it takes minutes."""
LEAST_MEASURED = 10
"""Number of labels below which an accuracy would say nothing: its interval would be over 50 points wide."""


def measured(best: CrossValidated, labels: Tensor, classes: Sequence[str], tokens: Tokens) -> Classifier:
    """A cross-validated logistic regression as a classifier that knows its accuracy, or why it is not known.

    Args:
        best: The regression.
        labels: int64 `[M]`, the labels it was trained on, positions in `classes`.
        classes: Names of the C classes.
        tokens: Tokens of the network that form its features.
    """
    known, how = None, f"{len(labels)} labels are too few to measure it; {LEAST_MEASURED} are enough for a figure"
    if len(labels) >= LEAST_MEASURED:
        known, how = accuracy(best.scores, labels), f"{best.folds}-fold cross-validation"
    return Classifier(best.weight, best.bias, tuple(classes), tokens, known, how)


def predictions(
    classifier: Classifier, features: Tensor, paths: Sequence[str], given: Mapping[str, str]
) -> list[dict[str, Any]]:
    """The most probable class of each image.

    Args:
        classifier: The classifier.
        features: float `[M D]`.
        paths: M names of the images.
        given: Name of an image → the label that it was given.

    Returns:
        For each image its path, class, probability in (0, 1] and, as labeled, the label it was given or "".
    """
    probabilities, labels = classifier(features).softmax(1).max(1)  # [M], [M]
    names = [classifier.classes[label] for label in labels.tolist()]
    return [
        {"path": path, "class": name, "probability": round(probability, 6), "labeled": given.get(path, "")}
        for path, name, probability in zip(paths, names, probabilities.tolist(), strict=True)
    ]


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Predictions as CSV: path, class, probability, labeled. It works as DATA and as --labels."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "class", "probability", "labeled"])
    writer.writerows([cell(row["path"]), cell(row["class"]), row["probability"], cell(row["labeled"])] for row in rows)
    return text.getvalue()
