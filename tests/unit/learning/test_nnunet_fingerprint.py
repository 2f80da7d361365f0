"""The fingerprint: what two sites send adds up to what their pooled cases would have given, and to nothing more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msfl.learning.contract import ModelRefusal, Site
from msfl.learning.nnunet.fingerprint import Fingerprint, Geometry, count, merge, to_nnunet

spacings = st.floats(0.3, 6, allow_nan=False)
voxels = st.integers(8, 400)
geometries = st.builds(
    Geometry,
    spacing=st.tuples(spacings, spacings, spacings),
    shape=st.tuples(voxels, voxels, voxels),
    share=st.floats(0.01, 1),
)


def site(name: str = "site-a", channels: tuple[str, ...] = ("FLAIR", "T1w")) -> Site:
    nowhere = Path("/nowhere")
    labels = {"background": 0, "lesion": 1}
    return Site(name, nowhere, nowhere, nowhere, channels, labels, ".nii.gz", (), (), ())


def sent(cases: list[Geometry]) -> Fingerprint:
    """As it arrives at the centre: through JSON."""
    return Fingerprint.from_json(json.loads(json.dumps(count(site(), cases).to_json())))


@given(st.lists(geometries, max_size=6), st.lists(geometries, max_size=6), st.lists(geometries, max_size=6))
def test_merging_sites_is_counting_their_pooled_cases(a: list[Geometry], b: list[Geometry], c: list[Geometry]) -> None:
    pooled = count(site(), [*a, *b, *c])
    merged = merge({"site-a": sent(a), "site-b": sent(b), "site-c": sent(c)})
    assert merged == pooled
    assert merge({"x": merge({"b": sent(b), "c": sent(c)}), "y": sent(a)}) == pooled


def test_the_order_of_cases_does_not_leave_the_site() -> None:
    first = Geometry((3.0, 0.9375, 0.9375), (40, 200, 180), 0.6)
    second = Geometry((1.0, 1.0, 1.0), (160, 210, 170), 0.5)
    assert count(site(), [first, second]).to_json() == count(site(), [second, first]).to_json()


def test_nothing_links_the_axes_of_one_case() -> None:
    a = [Geometry((1.0, 1.0, 1.0), (10, 20, 30), 0.5), Geometry((2.0, 2.0, 2.0), (11, 21, 31), 0.5)]
    b = [Geometry((1.0, 2.0, 1.0), (10, 21, 30), 0.5), Geometry((2.0, 1.0, 2.0), (11, 20, 31), 0.5)]
    assert count(site(), a).to_json() == count(site(), b).to_json()


def test_spacing_keeps_a_tenth_of_a_micrometre() -> None:
    document = to_nnunet(sent([Geometry((3.0, 0.9375, 0.46875), (40, 200, 180), 0.61)]))
    assert document["spacings"] == [[3.0, 0.9375, 0.4688]]
    assert document["shapes_after_crop"] == [[40, 200, 180]]
    assert document["median_relative_size_after_cropping"] == pytest.approx(0.615)


def test_intensities_are_not_part_of_it() -> None:
    document = to_nnunet(sent([Geometry((1.0, 1.0, 1.0), (40, 200, 180), 0.61)]))
    assert document["foreground_intensity_properties_per_channel"] == {"0": {}, "1": {}}


def test_sites_with_other_channels_are_not_merged() -> None:
    with pytest.raises(ModelRefusal, match=r"sites_differ.*site-b.*T2w.*site-a") as refusal:
        merge({"site-a": count(site(), []), "site-b": count(site(channels=("FLAIR", "T2w")), [])})
    assert refusal.value.code == "sites_differ"


def test_without_training_cases_there_is_nothing_to_plan_from() -> None:
    for nobody in ({}, {"site-a": count(site(), [])}):
        with pytest.raises(ModelRefusal, match="no_training_cases"):
            to_nnunet(merge(nobody))


def _changed(**changes: Any) -> dict[str, Any]:
    return {**count(site(), [Geometry((1.0, 1.0, 1.0), (40, 50, 60), 0.5)]).to_json(), **changes}


@pytest.mark.parametrize(
    "document",
    [
        {},
        _changed(version=2),
        _changed(extra=1),
        _changed(channel_names="FLAIR"),
        _changed(channel_names=[]),
        _changed(labels={"lesion": 1.0}),
        _changed(labels=["lesion"]),
        _changed(file_ending=7),
        _changed(n_cases=-1),
        _changed(n_cases=True),
        _changed(n_cases=2),
        _changed(axes=[]),
        _changed(axes=[[[10000, 40, 1]]] * 2),
        _changed(axes=[[[10000, 40, 1]], [[10000, 40, 1]], "x"]),
        _changed(axes=[[[10000, 40, 1]], [[10000, 40, 1]], [[10000, 40]]]),
        _changed(axes=[[[10000, 40, 1]], [[10000, 40, 1]], [[10000, 40, 2]]]),
        _changed(axes=[[[10000, 40, 1]], [[10000, 40, 1]], [[0, 40, 1]]]),
        _changed(axes=[[[10000, 40, 1]], [[10000, 40, 1]], [[10000, 40.5, 1]]]),
        _changed(axes=[[[10000, 40, 1]], [[10000, 40, 1]], [[10000, 1_000_000, 1]]]),
        _changed(axes=[[[10000, 40, 1]], [[10000, 40, 1]], [[10000, 40, 1], [10000, 40, 0]]]),
        _changed(relative_size=[[50, 1], [50, 1]]),
        _changed(relative_size=[[101, 1]]),
        _changed(relative_size=None),
    ],
)
def test_the_centre_reads_a_fingerprint_strictly(document: dict[str, Any]) -> None:
    with pytest.raises(ModelRefusal, match="fingerprint_invalid"):
        Fingerprint.from_json(document)
