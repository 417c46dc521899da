"""Generated TIFF, NumPy, DICOM and NIfTI files, and what reading each must give.

A variant is equal to what tifffile, NumPy, pydicom or nibabel give (after the rule named in it), or it is refused with
its reason. `python -m tests.data.readers_table` prints the table; the images are small, so that it takes seconds.
"""

from __future__ import annotations

from tests.data import array_variants, tiff_variants
from tests.data.variants import Variant, result


def variants() -> list[Variant]:
    """All of them."""
    groups = (*tiff_variants.GROUPS, *array_variants.GROUPS)
    return [variant for group in groups for variant in group()]


def main() -> None:
    """Print the table and its sums."""
    rows = [(variant.name, result(variant)) for variant in variants()]
    for name, outcome in rows:
        print(f"{name:52} {outcome}")
    counts = [sum(outcome.startswith(word) for _, outcome in rows) for word in ("equal", "refused", "WRONG")]
    print(f"{len(rows)} variants: {counts[0]} equal, {counts[1]} refused with a reason, {counts[2]} wrong")


if __name__ == "__main__":
    main()
