"""Result of a run: what `opendino.train` and `opendino.resume` return."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Result:
    """Result of a run.

    Attributes:
        run: The run's folder.
        steps: Optimizer steps of the whole run.
        seconds: Wall time of this call.
        images_per_second: Training throughput of this call, without evaluations and checkpoints.
        data_wait: Fraction of that time spent waiting for images, 0 to 1.
        mfu: Model FLOPs utilization, 0 to 1, see `Throughput.summary`.
        peak_memory_bytes: Peak memory of the GPU, or else of this process.
        knn: k-NN accuracy in percent of "teacher", "student", raw "pixels", and of the "untrained" network or, with
            `init`, the network at the "start"; None without labels. The first entry is the network to use.
        accuracy: Accuracy of the classifiers in percent, for methods that train them.
        effective_rank: Effective rank of the features of the network to use.
        collapse: KIND of the collapse at the end, None if there is none.
        against_start: Of a continued run: whether it is better than the run before, see `comparison.against_start`; of
            a fine-tuned one: than the frozen features, see `finetuning.against_frozen_head`.
        balanced_accuracy, standard_error: For each entry of `knn`, in percent, see `core.accuracy`.
        accuracy_balanced: Balanced accuracy for each entry of `accuracy`, in percent.
        majority: Percentage of the most frequent class among the query images.
        num_queries: Number of query images.
        judged_on: Counts of the images evaluated on, and "confirmed": 0 if their classes are just sub-folders.
        verdict: "learned", "not shown to learn" or "collapsed (KIND)", see `engine.verdict`.
        evidence: The metrics the verdict is based on, the deciding fact in the first sentence.
        cure: What to change, one line; empty if nothing.
    """

    run: str
    steps: int
    seconds: float
    images_per_second: float
    data_wait: float
    mfu: float
    peak_memory_bytes: int
    knn: dict[str, float] | None
    accuracy: dict[str, float] | None
    effective_rank: float | None
    collapse: str | None
    against_start: dict[str, Any] | None
    balanced_accuracy: dict[str, float] | None
    standard_error: dict[str, float] | None
    accuracy_balanced: dict[str, float] | None
    majority: float | None
    num_queries: int | None
    judged_on: dict[str, Any] | None
    verdict: str
    evidence: str
    cure: str

    def _repr_html_(self) -> str:
        """The report of the run, for notebooks; without one the verdict."""
        page = Path(self.run) / "report.html"
        if not page.is_file():
            return f"<p><b>{escape(self.verdict)}</b>: {escape(self.evidence)}</p>"
        return f'<iframe srcdoc="{escape(page.read_text(encoding="utf-8"))}" width="100%" height="600"></iframe>'
