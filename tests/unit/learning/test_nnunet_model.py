"""The whole contract on a federation of two tiny sites: prepare, train, evaluate, restart, export."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ruamel.yaml import YAML

from msfl.learning.contract import Candidate, ModelRefusal, Site, Stream, Weights

pytestmark = pytest.mark.slow  # nnU-Net's import alone takes seconds

CHANNELS = ("FLAIR", "T1w")
LABELS = {"background": 0, "lesion": 1}


def config(**changes: Any) -> dict[str, Any]:
    import msfl.learning.nnunet as release

    recipe = YAML(typ="safe").load(Path(release.__file__).with_name("release.yaml").read_text())
    tiny = {"rounds": 3, "batches_per_epoch": 2, "patch_size": 16, "base_features": 4, "inference_tile": 16}
    return {**recipe["profiles"]["demo"], "device": "cpu", **tiny, **changes}


def write_case(folder: Path, part: str, case: str, draw: np.random.Generator, affine: np.ndarray) -> None:
    """An ellipsoid head with bright balls; stored in the orientation of `affine`, one off-centre for its sake."""
    import nibabel

    shape = (26, 30, 24)
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1)
    centre = (np.array(shape) - 1) / 2
    head = (((grid - centre) / (centre - 1)) ** 2).sum(-1) < 1
    lesion = np.zeros(shape, bool)
    for _ in range(3):
        at = centre + draw.uniform(-6, 6, 3)
        lesion |= ((grid - at) ** 2).sum(-1) < 7
    lesion &= head
    flair = head * (100 + 60 * lesion + draw.normal(0, 5, shape))
    t1w = head * (120 - 40 * lesion + draw.normal(0, 5, shape))
    orientation = nibabel.orientations.io_orientation(affine)
    back = nibabel.orientations.ornt_transform(
        nibabel.orientations.io_orientation(np.diag([2.0, 2, 2, 1])), orientation
    )

    def save(path: Path, volume: np.ndarray, dtype: type) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        stored = nibabel.orientations.apply_orientation(volume, back)
        nibabel.save(nibabel.nifti1.Nifti1Image(stored.astype(dtype), affine), path)

    for channel, image in enumerate((flair, t1w)):
        save(folder / f"images{part}" / f"{case}_{channel:04d}.nii.gz", image, np.int16)
    save(folder / f"labels{part}" / f"{case}.nii.gz", lesion, np.uint8)


RAS = np.diag([2.0, 2.0, 2.0, 1.0])
LAS = np.diag([-2.0, 2.0, 2.0, 1.0])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    draw = np.random.default_rng(0)
    for name, affine in (("site-a", RAS), ("site-b", LAS)):
        for number in range(4):
            write_case(folder / name, "Tr", f"T_{number}", draw, affine)
        for number in range(2):
            write_case(folder / name, "Ts", f"E_{number}", draw, affine)
    for file in folder.rglob("*.nii.gz"):
        file.chmod(0o444)  # a worker sees its data read-only
    return folder


def site(data: Path, name: str, scratch: Path) -> Site:
    train, val, test = ("T_0", "T_1", "T_2"), ("T_3",), ("E_0", "E_1")
    here = scratch / name
    return Site(name, data / name, here, here / "figures", CHANNELS, LABELS, ".nii.gz", train, val, test)


def nothing(done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
    pass


def planned(data: Path, scratch: Path, settings: dict[str, Any]) -> tuple[dict[str, Any], Weights]:
    from msfl.learning.nnunet.model import NnUNet

    centre = NnUNet()
    sites = [site(data, name, scratch) for name in ("site-a", "site-b")]
    plan = centre.plan({s.site_id: NnUNet().fingerprint(s, settings) for s in sites}, settings)
    plan = json.loads(json.dumps(plan, sort_keys=True))
    return plan, centre.initial(plan, settings)


def rounds(
    model: Any, here: Site, weights: Weights, stream: Stream, numbers: range, settings: dict[str, Any]
) -> Weights:
    for number in numbers:
        weights = model.train(here, weights, stream, number, settings, nothing).weights
    return weights


def same(a: Weights, b: Weights) -> bool:
    return list(a) == list(b) and all(np.array_equal(a[name], b[name]) for name in a)


def test_the_same_spec_on_the_same_data_gives_the_same_weights_to_the_bit(data: Path, tmp_path: Path) -> None:
    from msfl.learning.nnunet.model import NnUNet

    results = []
    for attempt in ("first", "second"):
        settings = config()
        plan, initial = planned(data, tmp_path / attempt, settings)
        model, here = NnUNet(), site(data, "site-a", tmp_path / attempt)
        model.prepare(here, plan, settings, nothing)
        if attempt == "second":  # what else this process does changes nothing
            rounds(model, here, initial, "local", range(1, 3), settings)
            np.random.default_rng().random()
        results.append(rounds(model, here, initial, "federated", range(1, 4), settings))
    assert same(*results)
    other = planned(data, tmp_path / "other", config(seed=2))[1]
    assert not same(other, planned(data, tmp_path / "again", config())[1])


def test_a_worker_that_is_killed_goes_on_as_if_it_had_not_been(data: Path, tmp_path: Path) -> None:
    from msfl.learning.nnunet.model import NnUNet

    settings = config()
    plan, initial = planned(data, tmp_path, settings)
    whole, here = NnUNet(), site(data, "site-a", tmp_path / "whole")
    whole.prepare(here, plan, settings, nothing)
    undisturbed = rounds(whole, here, initial, "federated", range(1, 4), settings)

    first, there = NnUNet(), site(data, "site-a", tmp_path / "killed")
    first.prepare(there, plan, settings, nothing)
    after_two = rounds(first, there, initial, "federated", range(1, 3), settings)
    again = NnUNet()  # a new process knows nothing but the scratch folder
    again.prepare(there, plan, settings, nothing)
    finished = rounds(again, there, after_two, "federated", range(3, 4), settings)
    assert same(finished, undisturbed)
    # A round that is asked for twice (the answer was lost) gives the same answer twice.
    assert same(rounds(again, there, after_two, "federated", range(3, 4), settings), undisturbed)


def test_the_local_stream_is_the_federated_one_without_the_others(data: Path, tmp_path: Path) -> None:
    from msfl.learning.nnunet.model import NnUNet

    settings = config()
    plan, initial = planned(data, tmp_path, settings)
    model, here = NnUNet(), site(data, "site-a", tmp_path)
    model.prepare(here, plan, settings, nothing)
    federated = rounds(model, here, initial, "federated", range(1, 3), settings)
    local = rounds(model, here, initial, "local", range(1, 3), settings)
    assert same(federated, local)  # a federation of one


def test_no_transform_chooses_its_arithmetic_by_the_clock(data: Path, tmp_path: Path) -> None:
    from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform

    from msfl.learning.nnunet.model import NnUNet
    from msfl.learning.nnunet.settings import Settings
    from msfl.learning.nnunet.trainer import RoundTrainer

    settings = config()
    plan, _ = planned(data, tmp_path, settings)
    here = site(data, "site-a", tmp_path)
    NnUNet().prepare(here, plan, settings, nothing)
    trainer = RoundTrainer.create(
        plan, plan["dataset"], here.train_cases, Settings.from_config(settings), tmp_path / "state"
    )
    blurs, todo = [], [trainer.dataloader_train.data_loader.transforms]
    while todo:
        transform = todo.pop()
        if isinstance(transform, GaussianBlurTransform):
            blurs.append(transform)
        todo += [*getattr(transform, "transforms", []), *filter(None, [getattr(transform, "transform", None)])]
    assert [blur.benchmark for blur in blurs] == [False]


def test_weights_are_the_named_parameters_each_once(data: Path, tmp_path: Path) -> None:
    from msfl.learning.nnunet.network import build_network

    plan, initial = planned(data, tmp_path, config())
    network = build_network(plan, deep_supervision=True)
    assert list(initial) == sorted(initial)
    assert sum(value.size for value in initial.values()) == sum(p.numel() for p in network.parameters())
    assert len(network.state_dict()) > len(initial)  # the aliases that do not travel
    assert all(value.dtype == np.float32 for value in initial.values())


def test_weights_of_another_network_are_refused_before_they_are_used(data: Path, tmp_path: Path) -> None:
    from msfl.learning.nnunet.network import build_network, read_weights, write_weights

    plan, initial = planned(data, tmp_path, config())
    network = build_network(plan, deep_supervision=True)
    name = next(iter(initial))
    wrong: list[dict[str, Any]] = [
        {key: value for key, value in initial.items() if key != name},
        {**initial, "extra": initial[name]},
        {**initial, name: initial[name][:1]},
        {**initial, name: initial[name].astype(np.float64)},
        {**initial, name: np.full_like(initial[name], np.nan)},
    ]
    for bad in wrong:
        before = read_weights(network)
        with pytest.raises(ModelRefusal, match="weights_not_of_this_plan"):
            write_weights(network, bad)
        assert same(read_weights(network), before)


def test_evaluation_measures_every_candidate_and_draws_one_picture(data: Path, tmp_path: Path) -> None:
    from msfl.learning.nnunet.model import NnUNet

    settings = config(batches_per_epoch=12)
    plan, initial = planned(data, tmp_path, settings)
    for name in ("site-a", "site-b"):
        model, here = NnUNet(), site(data, name, tmp_path)
        prepared = model.prepare(here, plan, settings, nothing)
        assert (prepared.n_train, prepared.n_val, prepared.n_test) == (3, 1, 2)
        with pytest.raises(ModelRefusal, match="no_local_model"):
            model.evaluate(here, (Candidate(f"local:{name}", None),), "test", settings, nothing)
        trained = rounds(model, here, initial, "local", range(1, 4), settings)
        candidates = (Candidate("federated", initial), Candidate(f"local:{name}", None))
        validation = model.evaluate(here, candidates, "validation", settings, nothing).summaries
        assert list(validation) == ["federated", f"local:{name}"]
        assert validation["federated"]["n"] == 1
        assert validation[f"local:{name}"]["loss"] < validation["federated"]["loss"]
        test = model.evaluate(here, candidates, "test", settings, nothing).summaries
        assert test[f"local:{name}"]["n"] == 2
        # Bright balls in a dark head: two dozen batches find them, in files of either orientation.
        assert test[f"local:{name}"]["dice"]["mean"] > 0.5
        by_hand = model.evaluate(here, (Candidate("federated", trained),), "test", settings, nothing).summaries
        assert by_hand["federated"] == test[f"local:{name}"]
        assert [p.name for p in (tmp_path / name / "figures").iterdir()] == ["overlay.png"]


def test_a_site_without_training_cases_evaluates_only(data: Path, tmp_path: Path) -> None:
    from msfl.learning.nnunet.model import NnUNet

    settings = config()
    plan, initial = planned(data, tmp_path, settings)
    here = replace(site(data, "site-b", tmp_path), train_cases=(), val_cases=())
    model = NnUNet()
    model.prepare(here, plan, settings, nothing)
    with pytest.raises(ModelRefusal, match="no_training_cases"):
        model.train(here, initial, "federated", 1, settings, nothing)
    candidates = (Candidate("federated", initial),)
    assert model.evaluate(here, candidates, "validation", settings, nothing).summaries == {"federated": {"n": 0}}
    assert model.evaluate(here, candidates, "test", settings, nothing).summaries["federated"]["n"] == 2


def test_verbs_out_of_order_and_incomplete_data_are_refused(data: Path, tmp_path: Path) -> None:
    from msfl.learning.nnunet.model import NnUNet

    settings = config()
    plan, initial = planned(data, tmp_path, settings)
    here = site(data, "site-a", tmp_path)
    with pytest.raises(ModelRefusal, match="not_prepared"):
        NnUNet().train(here, initial, "federated", 1, settings, nothing)
    with pytest.raises(ModelRefusal, match="plan_not_allowed"):
        NnUNet().prepare(here, {**plan, "extra": 1}, settings, nothing)
    broken = tmp_path / "broken"
    shutil.copytree(data / "site-a", broken)
    (broken / "imagesTr" / "T_1_0001.nii.gz").unlink()
    with pytest.raises(ModelRefusal, match=r"image_missing.*T_1.*T1w"):
        NnUNet().fingerprint(replace(here, data=broken), settings)


def test_the_exported_model_predicts_the_same_in_stock_nnunet(data: Path, tmp_path: Path) -> None:
    import torch
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.model_sharing.model_import import install_model_from_zip_file

    from msfl.learning.nnunet.inference import WholeCasePredictor
    from msfl.learning.nnunet.model import NnUNet
    from msfl.learning.nnunet.settings import Settings

    settings = config(inference_tile=0, inference_step=0.5, inference_mirroring=True, batches_per_epoch=12)
    plan, initial = planned(data, tmp_path, settings)
    model, here = NnUNet(), site(data, "site-b", tmp_path)
    model.prepare(here, plan, settings, nothing)
    trained = rounds(model, here, initial, "federated", range(1, 4), settings)
    NnUNet().export(plan, trained, dict(LABELS), tmp_path / "export")

    # As a user does: zip it, install it, predict.
    archive = tmp_path / "model.zip"
    with zipfile.ZipFile(archive, "w") as zipped:
        for file in sorted((tmp_path / "export").rglob("*")):
            zipped.write(file, file.relative_to(tmp_path / "export"))
    results = tmp_path / "results"
    results.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_results", str(results))
        install_model_from_zip_file(str(archive))
    installed = results / "Dataset501_msfl" / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    checkpoint = torch.load(installed / "fold_all" / "checkpoint_final.pth", weights_only=True)
    assert checkpoint["trainer_name"] == "nnUNetTrainer"

    stock = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    stock.initialize_from_trained_model_folder(str(installed), ("all",))
    ours = WholeCasePredictor(plan, plan["dataset"], Settings.from_config(settings))
    ours.use(trained)
    reader = SimpleITKIO()
    files = [str(here.data / "imagesTs" / f"E_0_{channel:04d}.nii.gz") for channel in (0, 1)]
    images, properties = reader.read_images(files)
    expected = stock.predict_single_npy_array(images, dict(properties))
    data_in_plan_space, kept = ours.preprocess(images, properties)
    got = ours.to_image_space(ours.logits(data_in_plan_space, mirror=True), kept)
    assert got.shape == expected.shape == images.shape[1:]
    assert expected.sum() > 50
    # Stock sums in float16, so that a voxel on the very edge may fall to the other side.
    assert (got != expected).mean() < 1e-3


def test_every_tile_is_made_of_whole_strides_and_fits_the_patch_by_default(data: Path, tmp_path: Path) -> None:
    from msfl.learning.nnunet.inference import tile_size
    from msfl.learning.nnunet.settings import Settings

    plan, _ = planned(data, tmp_path, config())
    assert tile_size(plan, Settings.from_config(config(inference_tile=0))) == [16, 16, 16]
    for cap in (8, 16, 17, 31, 200):
        tile = tile_size(plan, Settings.from_config(config(inference_tile=cap)))
        assert all(edge % 4 == 0 and edge <= max(cap, 16) for edge in tile)
