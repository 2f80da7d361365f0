"""`NnUNet`: nnU-Net v2 as a `FederatedModel`.

    verb          nnU-Net part used                             kept for later verbs
    fingerprint   reader, crop to nonzero                       –
    plan          ExperimentPlanner on the merged fingerprint   –
    initial       network of the plan, He initialisation        –
    prepare       DefaultPreprocessor.run_case_save             the plan; preprocessed cases in the scratch folder
    train         nnUNetTrainer, one per stream                 loader; momentum, also in the scratch folder
    evaluate      its network, its window positions             one network for all candidates
    export        –                                             (a stock model folder is written)

nnU-Net's parts are imported where they are first used: what a process needs depends on its verbs, and all of them take
six seconds. Everything runs in this one process: nnU-Net's pools would import torch again for every step. A worker that
was killed prepares again, which finds the preprocessed cases, and trains on with the momentum that it left behind.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel
import numpy as np
import torch
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from numpy.typing import NDArray

from msfl.evaluation.metrics import CaseMetrics, case_metrics, summarise, summarise_cases
from msfl.learning.contract import (
    Candidate,
    Evaluated,
    JsonObject,
    ModelRefusal,
    Prepared,
    ReportProgress,
    Site,
    Split,
    Stream,
    Trained,
    Weights,
)
from msfl.learning.files import json_hash, write_whole
from msfl.learning.nnunet import allowlist, fingerprint
from msfl.learning.nnunet.files import (
    CONFIGURATION,
    DATASET_NAME,
    PLANS_NAME,
    image_files,
    label_file,
    use_roots,
)
from msfl.learning.nnunet.network import build_network, read_weights, seed_everything, write_weights
from msfl.learning.nnunet.settings import Settings

if TYPE_CHECKING:
    from msfl.learning.nnunet.inference import WholeCasePredictor
    from msfl.learning.nnunet.trainer import RoundTrainer


@dataclass
class _Bench:
    """What one site keeps between verbs, once it is prepared."""

    plan: JsonObject
    dataset_json: JsonObject
    preprocessed: Path
    trainers: dict[Stream, RoundTrainer] = field(default_factory=dict)
    local: Weights | None = None
    predictor: WholeCasePredictor | None = None


class NnUNet:
    """Fulfils `msfl.learning.contract.FederatedModel`. One object serves one site (or the centre) for a whole run."""

    def __init__(self) -> None:
        self._bench: _Bench | None = None

    # At the centre --------------------------------------------------------------------------------------------------

    def plan(self, fingerprints: Mapping[str, JsonObject], config: JsonObject) -> JsonObject:
        from msfl.learning.nnunet import planning

        settings = Settings.from_config(config)
        merged = fingerprint.merge(
            {site: fingerprint.Fingerprint.from_json(document) for site, document in fingerprints.items()}
        )
        plan = planning.make_plan(merged, settings)
        allowlist.check(plan)
        return plan

    def initial(self, plan: JsonObject, config: JsonObject) -> Weights:
        settings = Settings.from_config(config)
        allowlist.check(plan)
        seed_everything(settings.seed)
        return read_weights(build_network(plan, deep_supervision=True))

    def export(self, plan: JsonObject, weights: Weights, labels: JsonObject, folder: Path) -> None:
        """A stock model folder below `folder`: zipped, `nnUNetv2_install_pretrained_model_from_zip` takes it, and
        `nnUNetv2_predict -d 501 -c 3d_fullres -f all` predicts with it."""
        allowlist.check(plan)
        network = build_network(plan, deep_supervision=True)
        write_weights(network, weights)
        model = folder / DATASET_NAME / f"nnUNetTrainer__{PLANS_NAME}__{CONFIGURATION}"
        (model / "fold_all").mkdir(parents=True, exist_ok=True)
        (model / "plans.json").write_text(json.dumps(plan["nnunet"], indent=2))
        (model / "dataset.json").write_text(json.dumps({**plan["dataset"], "labels": labels}, indent=2))
        # Tensors and plain values only, so that it also loads with torch's weights_only=True.
        checkpoint = {
            "network_weights": network.state_dict(),
            "optimizer_state": None,
            "grad_scaler_state": None,
            "logging": {},
            "_best_ema": None,
            "current_epoch": 0,
            "init_args": {"configuration": CONFIGURATION, "fold": "all"},
            "trainer_name": "nnUNetTrainer",
            "inference_allowed_mirroring_axes": (0, 1, 2),
        }
        torch.save(checkpoint, model / "fold_all" / "checkpoint_final.pth")

    # At a site ------------------------------------------------------------------------------------------------------

    def fingerprint(self, site: Site, config: JsonObject) -> JsonObject:
        Settings.from_config(config)
        return fingerprint.count(site, _geometries(site)).to_json()

    def prepare(self, site: Site, plan: JsonObject, config: JsonObject, progress: ReportProgress) -> Prepared:
        """Training and validation cases into plan space, into the scratch folder; test cases stay untouched."""
        from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        settings = Settings.from_config(config)
        allowlist.check_for_site(plan, site)
        torch.set_num_threads(settings.threads)
        use_roots(site.scratch)
        self._bench = bench = _set_up(site, plan)
        cases = [*site.train_cases, *site.val_cases]
        plans = PlansManager(plan["nnunet"])
        preprocessor = DefaultPreprocessor(verbose=False)
        for done, case in enumerate(cases, start=1):
            target = bench.preprocessed / case
            # The pickled properties are written last: a case that has them is complete, and made from this very plan.
            if not target.with_name(case + ".pkl").is_file():
                preprocessor.run_case_save(
                    str(target),
                    image_files(site, case, "train"),
                    label_file(site, case, "train"),
                    plans,
                    plans.get_configuration(CONFIGURATION),
                    bench.dataset_json,
                )
            progress(done, len(cases))
        return Prepared(n_train=len(site.train_cases), n_val=len(site.val_cases), n_test=len(site.test_cases))

    def train(
        self,
        site: Site,
        weights: Weights,
        stream: Stream,
        round: int,
        config: JsonObject,
        progress: ReportProgress,
    ) -> Trained:
        from msfl.learning.nnunet.trainer import RoundTrainer

        settings = Settings.from_config(config)
        bench = self._ready(site, settings)
        if not site.train_cases:
            raise ModelRefusal("no_training_cases", f"{site.site_id} has no training case; it can only evaluate")
        began = time.monotonic()
        state_folder = site.scratch / "streams" / stream
        trainer = bench.trainers.get(stream)
        if trainer is None:
            with _quiet():
                trainer = RoundTrainer.create(bench.plan, bench.dataset_json, site.train_cases, settings, state_folder)
            bench.trainers[stream] = trainer
        total = settings.local_epochs * settings.batches_per_epoch

        def on_batch(done: int, loss: float) -> None:
            progress(done, total, {"train_loss": loss})

        result, loss = trainer.run_round(weights, round, settings.round_seed(site.site_id, round), on_batch)
        if stream == "local":
            bench.local = result
        return Trained(
            weights=result,
            n_train=len(site.train_cases),
            metrics={"train_loss": loss, "seconds": time.monotonic() - began},
        )

    def evaluate(
        self,
        site: Site,
        candidates: tuple[Candidate, ...],
        split: Split,
        config: JsonObject,
        progress: ReportProgress,
    ) -> Evaluated:
        from msfl.learning.nnunet.inference import WholeCasePredictor

        settings = Settings.from_config(config)
        bench = self._ready(site, settings)
        weights = {candidate.name: _weights_of(bench, candidate) for candidate in candidates}
        if bench.predictor is None:
            with _quiet():
                bench.predictor = WholeCasePredictor(bench.plan, bench.dataset_json, settings)
        cases = site.test_cases if split == "test" else site.val_cases
        if not cases:
            return Evaluated({name: {"n": 0} for name in weights})
        if split == "test":
            mirror = settings.inference_mirroring
            return Evaluated(self._evaluate_test(site, bench.predictor, weights, mirror, progress))
        return Evaluated(self._evaluate_validation(site, bench, bench.predictor, weights, progress))

    def _evaluate_validation(
        self,
        site: Site,
        bench: _Bench,
        predictor: WholeCasePredictor,
        weights: Mapping[str, Weights],
        progress: ReportProgress,
    ) -> dict[str, JsonObject]:
        """Whole cases in plan space: mean loss and Dice of each candidate."""
        from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

        dataset = nnUNetDatasetBlosc2(str(bench.preprocessed), sorted(site.val_cases))
        summaries: dict[str, JsonObject] = {}
        for number, (name, candidate) in enumerate(weights.items()):
            predictor.use(candidate)
            losses, dice = [], []
            for done, case in enumerate(dataset.identifiers, start=1):
                data, seg, _, _ = dataset.load_case(case)
                image = np.ascontiguousarray(data[:], dtype=np.float32)
                truth = np.asarray(seg[:])[0].astype(np.int16)
                # Every round: without the flips, which cost eight times as much and change little.
                logits = predictor.logits(image, mirror=False)
                losses.append(predictor.loss_of(logits, truth))
                dice.append(case_metrics(truth > 0, logits.argmax(0).numpy() > 0).dice)
                progress(number * len(dataset.identifiers) + done, len(weights) * len(dataset.identifiers))
            summaries[name] = {
                "n": len(dice),
                "loss": float(np.mean(losses)),
                "dice": summarise(dice).to_json(),
            }
        return summaries

    def _evaluate_test(
        self,
        site: Site,
        predictor: WholeCasePredictor,
        weights: Mapping[str, Weights],
        mirror: bool,
        progress: ReportProgress,
    ) -> dict[str, JsonObject]:
        """Each test case on its own grid: Dice, sensitivity, precision of all foreground labels together, and the
        overlay of the case with the median lesion load."""
        reader = SimpleITKIO()
        metrics: dict[str, list[CaseMetrics]] = {name: [] for name in weights}
        loads = {case: _load(reader, site, case) for case in site.test_cases}
        shown = sorted(loads, key=lambda case: (loads[case], case))[len(loads) // 2]
        for done, case in enumerate(site.test_cases, start=1):
            images, properties = reader.read_images(image_files(site, case, "test"))
            truth = reader.read_seg(label_file(site, case, "test"))[0][0] > 0
            if truth.shape != images.shape[1:]:
                raise ModelRefusal("label_shape_differs", f"case {case}: label and images have different shapes")
            data, prepared_properties = predictor.preprocess(images, properties)
            predictions: dict[str, NDArray[np.bool_]] = {}
            for name, candidate in weights.items():
                predictor.use(candidate)
                logits = predictor.logits(data, mirror=mirror)
                predictions[name] = predictor.to_image_space(logits, prepared_properties) > 0
                metrics[name].append(case_metrics(truth, predictions[name]))
            if case == shown:
                own = ("federated", f"local:{site.site_id}")
                chosen = {name: mask for name, mask in predictions.items() if name in own} or predictions
                _draw(site, images, truth, chosen, properties)
            progress(done, len(site.test_cases))
        return {name: summarise_cases(cases) for name, cases in metrics.items()}

    def _ready(self, site: Site, settings: Settings) -> _Bench:
        if self._bench is None:
            raise ModelRefusal("not_prepared", f"{site.site_id} has no plan yet; `prepare` comes before this verb")
        torch.set_num_threads(settings.threads)
        use_roots(site.scratch)
        return self._bench


def _set_up(site: Site, plan: JsonObject) -> _Bench:
    """Folders of this plan. Cases preprocessed for the same plan are kept, for another one thrown away."""
    preprocessed = site.scratch / "nnunet" / "preprocessed" / DATASET_NAME
    stamp = preprocessed / "plan.sha256"
    wanted = json_hash(plan)
    if not stamp.is_file() or stamp.read_text() != wanted:
        shutil.rmtree(preprocessed, ignore_errors=True)
        preprocessed.mkdir(parents=True)
        write_whole(stamp, [wanted.encode()])
    cases = preprocessed / f"{PLANS_NAME}_{CONFIGURATION}"
    cases.mkdir(exist_ok=True)
    return _Bench(plan=plan, dataset_json=dict(plan["dataset"]), preprocessed=cases)


def _weights_of(bench: _Bench, candidate: Candidate) -> Weights:
    weights = bench.local if candidate.weights is None else candidate.weights
    if weights is None:
        raise ModelRefusal("no_local_model", f"{candidate.name}: this worker has trained no local model")
    return weights


def _geometries(site: Site) -> Iterator[fingerprint.Geometry]:
    """Every training case (not the validation and test cases), read and cropped as the preprocessor will crop it."""
    from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero

    reader = SimpleITKIO()
    for case in site.train_cases:
        images, properties = reader.read_images(image_files(site, case, "train"))
        cropped, _, _ = crop_to_nonzero(images)
        z, y, x = (float(mm) for mm in properties["spacing"])
        yield fingerprint.Geometry(
            spacing=(z, y, x),
            shape=(cropped.shape[1], cropped.shape[2], cropped.shape[3]),
            share=float(np.prod(cropped.shape[1:]) / np.prod(images.shape[1:])),
        )


def _load(reader: Any, site: Site, case: str) -> int:
    return int(np.count_nonzero(reader.read_seg(label_file(site, case, "test"))[0]))


def _draw(
    site: Site,
    images: NDArray[np.float32],
    truth: NDArray[np.bool_],
    predictions: Mapping[str, NDArray[np.bool_]],
    properties: JsonObject,
) -> None:
    """`site.figures/overlay.png`. The title names the site, never the case."""
    from msfl.evaluation.overlay import overlay

    # SimpleITK's directions are LPS, the picture's arrays are (x, y, z) in RAS.
    direction = np.array(properties["sitk_stuff"]["direction"]).reshape(3, 3)
    spacing = np.array(properties["sitk_stuff"]["spacing"])
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    affine[:3, :3] = affine[:3, :3] @ direction @ np.diag(spacing)
    orientation = nibabel.orientations.io_orientation(affine)

    def to_ras(volume: NDArray[Any]) -> NDArray[Any]:
        turned: NDArray[Any] = nibabel.orientations.apply_orientation(volume.transpose(2, 1, 0), orientation)
        return np.ascontiguousarray(turned)

    x, y, z = (float(spacing[np.flatnonzero(orientation[:, 0] == axis)[0]]) for axis in range(3))
    names = (site.channel_names[0], site.channel_names[min(1, len(images) - 1)])
    figure = overlay(
        to_ras(images[0]),
        to_ras(images[1]) if len(images) > 1 else None,
        to_ras(truth),
        {name: to_ras(mask) for name, mask in predictions.items()},
        (x, y, z),
        site.site_id,
        names,
    )
    site.figures.mkdir(parents=True, exist_ok=True)
    figure.savefig(site.figures / "overlay.png", dpi=110)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """nnU-Net prints while it is constructed; a worker's output is for the platform's own log lines."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
