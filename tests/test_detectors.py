"""D-RMM on every family of stock detectors: their own detections, the likelihood of their scores, save, load, train."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoModelForObjectDetection,
    DeformableDetrImageProcessor,
    RTDetrImageProcessor,
    Trainer,
    TrainingArguments,
    YolosConfig,
    pipeline,
)

from detector_fixtures import FAMILIES, GROUPS, WITH_PROPOSALS, batch, small_detector, small_detector_config
from drmm_hf import DrmmDetrConfig, DrmmDetrForObjectDetection, MixtureParameters, mixture_loss
from drmm_hf.mixture import score_mixture


@pytest.fixture(params=FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def stock(tmp_path_factory) -> Callable[[str], Path]:
    """The folder of a stock checkpoint of a family."""
    parent = tmp_path_factory.mktemp("stock")

    def folder(family: str) -> Path:
        if not (parent / family).exists():
            small_detector(family).save_pretrained(parent / family)
        return parent / family

    return folder


@pytest.fixture(scope="module")
def all_wrapped() -> dict[str, DrmmDetrForObjectDetection]:
    return {}


@pytest.fixture
def wrapped(family, stock, all_wrapped) -> DrmmDetrForObjectDetection:
    if family not in all_wrapped:
        all_wrapped[family] = DrmmDetrForObjectDetection.from_detector(stock(family)).eval()
    return copy.deepcopy(all_wrapped[family])


@torch.no_grad()
def test_detections_are_those_of_the_stock_detector_to_the_bit(wrapped, family):
    inputs = batch()
    stock, plain = small_detector(family)(inputs["pixel_values"]), wrapped(inputs["pixel_values"])
    with_labels = wrapped(**inputs)
    for outputs in (plain, with_labels):
        assert torch.equal(outputs.logits, stock.logits)
        assert torch.equal(outputs.pred_boxes, stock.pred_boxes)
    sides = stock.pred_boxes[..., 2:]
    # gamma begins as a share of the box
    torch.testing.assert_close(plain.pred_scales, 0.1 * torch.cat((sides, sides), dim=-1), rtol=1e-4, atol=1e-6)
    assert with_labels.loss.isfinite()


def test_the_loss_is_the_mixture_likelihood_of_the_scores(wrapped, family):
    """By hand for the last layer: the weights of the mixture are the scores, normalised."""
    inputs = batch()
    outputs = wrapped(**inputs)
    probability = outputs.logits.softmax(-1)[..., :-1] if family == "detr" else outputs.logits.sigmoid()
    size = 64.0
    centers, sides = (outputs.pred_boxes * size).chunk(2, dim=-1)
    edges = torch.cat((centers - sides / 2, centers + sides / 2), dim=-1)[0]
    scales = outputs.pred_scales[0] * size
    nll, mcm = 0.0, 0.0
    for label, box in zip(inputs["labels"][0]["class_labels"], inputs["labels"][0]["boxes"], strict=True):
        target = torch.cat((box[:2] - box[2:] / 2, box[:2] + box[2:] / 2)) * size
        density = (scales / (torch.pi * (scales**2 + (edges - target) ** 2))).double().prod(-1)
        weights = (probability[0, :, label] / probability[0].sum()).double()
        # times the number of ground truths, as released
        joint = 2 * weights * density
        nll -= (joint.sum() + 1e-12).log()
        mcm -= (joint.max() / (joint.sum() + 1e-12) + 1e-12).log()
    anchor = sum(p.sum() - n * p.sum().log() for p, n in zip(probability.double(), (2, 0), strict=True))
    last = max(int(name.rsplit("_", 1)[1]) for name in outputs.loss_dict)
    for name, value in {"nll": nll, "mcm": mcm, "anchor": anchor}.items():
        assert outputs.loss_dict[f"{name}_stage_{last}"].item() == pytest.approx(value.item(), rel=2e-4), name
    total = sum((0.5 if name.startswith("mcm") else 1.0) * value for name, value in outputs.loss_dict.items())
    torch.testing.assert_close(outputs.loss, total)


def test_gradients_reach_what_the_native_loss_reaches(wrapped):
    """All but the embedding of denoising queries, which there are none of."""
    wrapped.train()
    reached: dict[str, set[str]] = {}
    for objective in ("native", "nll_mcm"):
        wrapped.config.objective = objective
        wrapped.zero_grad()
        wrapped(**batch()).loss.backward()
        gradients = {name: p.grad for name, p in wrapped.named_parameters() if p.grad is not None}
        assert all(gradient.isfinite().all() for gradient in gradients.values())
        reached[objective] = {name for name, gradient in gradients.items() if gradient.any()}
    missing = reached["native"] - reached["nll_mcm"]
    assert not [name for name in missing if "denoising_class_embed" not in name]
    assert {name for name in reached["nll_mcm"] if "edge_scales" in name}


@pytest.mark.parametrize("family", WITH_PROPOSALS, indirect=True)
def test_proposals_of_the_encoder_learn_as_stage_zero(wrapped):
    inputs = batch()
    assert {"nll_stage_0", "mcm_stage_0", "anchor_stage_0"} <= wrapped(**inputs).loss_dict.keys()
    without = copy.deepcopy(wrapped)
    without.config.encoder_stage = False
    assert "nll_stage_0" not in without(**inputs).loss_dict


@pytest.mark.parametrize("family", GROUPS, indirect=True)
def test_groups_of_queries_are_separate_mixtures(wrapped, family):
    """The loss of a training pass is the mean of what each group gives alone."""
    inputs = batch()
    wrapped.train()
    outputs = wrapped(**inputs)
    number = GROUPS[family]
    boxes = torch.tensor([[[0.2, 0.2, 0.4, 0.4], [0.45, 0.4, 0.75, 0.8]]]) * 64
    losses = []
    for group in range(number):
        rows = slice(group * 8, (group + 1) * 8)
        scores = outputs.logits[:1, rows].sigmoid().log()
        mixture = score_mixture(scores, outputs.locations[:1, rows], outputs.scales[:1, rows])
        losses.append(mixture_loss(mixture, boxes, torch.tensor([[0, 2]])).nll.sum())
    torch.testing.assert_close(outputs.loss_dict["nll_stage_2"], sum(losses).detach() / number, rtol=1e-4, atol=1e-3)


def test_saved_and_loaded_both_ways(wrapped, family, tmp_path):
    inputs = batch()["pixel_values"]
    with torch.no_grad():
        wrapped.edge_scales.bias += 0.5
        expected = wrapped(inputs)
        wrapped.save_pretrained(tmp_path / "drmm")
        loaded = AutoModelForObjectDetection.from_pretrained(tmp_path / "drmm").eval()
        assert isinstance(loaded, DrmmDetrForObjectDetection)
        assert isinstance(AutoConfig.from_pretrained(tmp_path / "drmm"), DrmmDetrConfig)
        for name in ("logits", "pred_boxes", "pred_scales"):
            assert torch.equal(loaded(inputs)[name], expected[name])
        loaded.detector.save_pretrained(tmp_path / "deployed")
        deployed = AutoModelForObjectDetection.from_pretrained(tmp_path / "deployed").eval()
        assert type(deployed) is type(small_detector(family))
        assert torch.equal(deployed(inputs).logits, expected.logits)


def test_what_the_detector_freezes_stays_frozen(wrapped, family, tmp_path):
    """Loading of a checkpoint enables the gradient of everything."""
    wrapped.save_pretrained(tmp_path / "drmm")
    loaded = DrmmDetrForObjectDetection.from_pretrained(tmp_path / "drmm")
    trained = {name: parameter.requires_grad for name, parameter in small_detector(family).named_parameters()}
    for model in (wrapped, loaded):
        assert {name: parameter.requires_grad for name, parameter in model.detector.named_parameters()} == trained
        assert all(parameter.requires_grad for parameter in model.edge_scales.parameters())


@pytest.mark.parametrize("family", ["rt_detr_v2"], indirect=True)
def test_a_frozen_norm_keeps_its_statistics(wrapped):
    """Else an adapter of a frozen detector, which does not hold them, would not be what was trained."""
    norms = {name: m for name, m in wrapped.detector.named_modules() if isinstance(m, torch.nn.BatchNorm2d)}
    frozen = [name for name in norms if "encoder" in name]
    assert 0 < len(frozen) < len(norms)
    for name in frozen:
        norms[name].requires_grad_(False)
    before = {name: norm.running_mean.clone() for name, norm in norms.items()}
    wrapped.train()(**batch())
    assert [name for name, norm in norms.items() if torch.equal(norm.running_mean, before[name])] == frozen


def test_other_classes(family, stock):
    names = {0: "cat", 1: "emu", 2: "owl", 3: "yak"}
    model = DrmmDetrForObjectDetection.from_detector(stock(family), id2label=names)
    assert model.config.id2label == model.detector.config.id2label == names
    assert model.config.label2id == {name: label for label, name in names.items()}
    inputs = batch()
    inputs["labels"][0]["class_labels"] = torch.tensor([3, 0])
    outputs = model(**inputs)
    assert outputs.logits.shape[-1] == 4 + (family == "detr")
    assert outputs.loss.isfinite()
    inputs["labels"][0]["class_labels"] = torch.tensor([4, 0])
    with pytest.raises(ValueError, match="class_labels"):
        model(**inputs)


@pytest.mark.parametrize("family", ["rt_detr_v2", "lw_detr", "detr"], indirect=True)
def test_other_classes_for_a_checkpoint_of_our_own_begin_as_in_the_stock_detector(wrapped, tmp_path):
    wrapped.save_pretrained(tmp_path)
    names = {label: f"kind {label}" for label in range(9)}
    loaded = DrmmDetrForObjectDetection.from_pretrained(tmp_path, id2label=names, ignore_mismatched_sizes=True)
    torch.manual_seed(0)
    fresh = AutoModelForObjectDetection.from_config(loaded.detector.config).state_dict()
    before = wrapped.detector.state_dict()
    new = {name for name, value in fresh.items() if value.shape != before[name].shape}
    assert new
    for name, value in loaded.detector.state_dict().items():
        if name not in new:
            assert torch.equal(value, before[name]), name
        elif value.dim() == 1:
            assert torch.equal(value, fresh[name]), name
        else:
            torch.testing.assert_close(value.std(), fresh[name].std(), rtol=0.3, atol=0.0)


def test_objectives_and_half_precision_train(wrapped):
    wrapped.train()
    inputs = batch()
    both = wrapped(**inputs)
    wrapped.config.objective = "nll"
    alone = wrapped(**inputs)
    mcm = sum(value for name, value in both.loss_dict.items() if name.startswith("mcm"))
    torch.testing.assert_close(both.loss.detach() - 0.5 * mcm, alone.loss.detach(), rtol=1e-3, atol=1e-2)
    wrapped.config.objective = "native"
    native = wrapped(**inputs)
    assert native.loss.isfinite()
    assert native.loss.requires_grad
    wrapped.config.objective = "nll_mcm"
    with torch.autocast("cpu", torch.bfloat16):
        half = wrapped(**inputs).loss
    half.backward()
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(both.loss.item(), rel=0.1)


def test_a_step_down_the_gradient_lowers_the_loss(wrapped):
    inputs = batch()
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=1e-6)
    before = wrapped(**inputs).loss
    before.backward()
    optimizer.step()
    assert wrapped(**inputs).loss < before


def test_padding_is_no_part_of_the_image():
    """Labels and gamma are fractions of the image, not of the canvas."""
    model = DrmmDetrForObjectDetection(DrmmDetrConfig(detector_config=small_detector_config("deformable_detr"))).eval()
    inputs = batch()
    mask = torch.zeros(2, 64, 64, dtype=torch.long)
    mask[:, :32, :48] = 1
    outputs = model(**inputs, pixel_mask=mask)
    sides = outputs.pred_boxes[..., 2:] * torch.tensor([48.0, 32.0])
    torch.testing.assert_close(outputs.scales, 0.1 * torch.cat((sides, sides), dim=-1), rtol=1e-4, atol=1e-4)


def test_weights_of_the_score_form():
    """q = p * o gives pi and p of Section 3.2, and the same likelihood and anchor."""
    generator = torch.Generator().manual_seed(0)
    locations = torch.rand(2, 7, 4, generator=generator, dtype=torch.float64) * 50
    locations[..., 2:] += locations[..., :2]
    scales = torch.rand(2, 7, 4, generator=generator, dtype=torch.float64) + 1
    logits, objectness = (
        torch.randn(2, 7, 5, generator=generator).double(),
        torch.randn(2, 7, generator=generator).double(),
    )
    log_scores = logits.log_softmax(-1) + torch.nn.functional.logsigmoid(objectness).unsqueeze(-1)
    boxes, labels = locations[:, :3] + 0.5, torch.tensor([[0, 1, 4], [3, 3, 2]])
    ours = mixture_loss(score_mixture(log_scores, locations, scales), boxes, labels)
    drmm = mixture_loss(MixtureParameters(locations, scales, logits, objectness), boxes, labels)
    torch.testing.assert_close(ours.nll, drmm.nll)
    torch.testing.assert_close(ours.mcm, drmm.mcm)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_halved_checkpoints(kind, tmp_path):
    """They begin as float32 unless told otherwise, and gamma has the type of the rest."""
    small_detector("rt_detr_v2").to(kind).save_pretrained(tmp_path / "stock")
    inputs = batch()["pixel_values"]
    assert DrmmDetrForObjectDetection.from_detector(tmp_path / "stock").dtype == torch.float32
    model = DrmmDetrForObjectDetection.from_detector(tmp_path / "stock", dtype="auto")
    assert {parameter.dtype for parameter in model.parameters()} == {kind}
    model.save_pretrained(tmp_path / "drmm")
    loaded = AutoModelForObjectDetection.from_pretrained(tmp_path / "drmm")
    for one in (model, loaded):
        outputs = one(inputs)
        assert outputs.logits.dtype == kind
        assert outputs.pred_scales.isfinite().all()


def test_classes_by_either_mapping(stock):
    names = {0: "cat", 1: "emu"}
    for given in ({"id2label": {"0": "cat", "1": "emu"}}, {"label2id": {"cat": 0, "emu": 1}}):
        config = DrmmDetrForObjectDetection.from_detector(stock("rt_detr_v2"), **given).config
        assert config.id2label == config.detector_config.id2label == names
        assert config.label2id == {"cat": 0, "emu": 1}


@pytest.mark.parametrize("wrong", [{"id2label": {1: "cat", 3: "emu"}}, {"id2label": ["cat", "emu"]}, {"mcm_wieght": 1}])
def test_arguments_that_cannot_be_are_refused(wrong, stock):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DrmmDetrForObjectDetection.from_detector(stock("rt_detr_v2"), **wrong)


def test_fields_of_the_detector_and_a_folder_of_our_own(stock, tmp_path):
    model = DrmmDetrForObjectDetection.from_detector(str(stock("rt_detr_v2")), num_queries=5, mcm_weight=0.25)
    assert model(batch()["pixel_values"]).logits.shape[1] == 5
    assert model.config.mcm_weight == 0.25
    model.save_pretrained(tmp_path / "drmm", max_shard_size="50KB")
    assert str(tmp_path.parent) not in (tmp_path / "drmm" / "config.json").read_text()  # where the detector came from
    loaded = AutoModelForObjectDetection.from_pretrained(tmp_path / "drmm")
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match="from_pretrained"):
        DrmmDetrForObjectDetection.from_detector(tmp_path / "drmm")


@pytest.mark.parametrize("family", ["rf_detr", "deformable_detr_two_stage", "detr"], indirect=True)
def test_gradient_checkpointing_changes_no_gradient(wrapped):
    wrapped.train()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            wrapped.gradient_checkpointing_enable()
        wrapped.zero_grad()
        torch.manual_seed(0)
        wrapped(**batch()).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in wrapped.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["deformable_detr", "lw_detr"], indirect=True)
def test_inference_computes_the_heads_of_the_last_layer_only(wrapped, family):
    """As often as the stock model calls them by itself."""
    calls = []
    for name, module in wrapped.detector.named_modules():
        if name.split(".")[0] in ("class_embed", "bbox_embed"):
            module.register_forward_hook(lambda *_: calls.append(1))
    counts = []
    for model in (wrapped.detector, wrapped):
        calls.clear()
        model(batch()["pixel_values"])
        counts.append(len(calls))
    assert counts[0] == counts[1] > 0


def test_a_family_without_an_adapter_is_named(tmp_path):
    with pytest.raises(ValueError, match="yolos"):
        DrmmDetrForObjectDetection(DrmmDetrConfig(detector_config=YolosConfig()))


@pytest.mark.parametrize(
    "fields",
    [
        {"initial_scale_ratio": 0.0},
        {"mcm_weight": -1.0},
        {"class_weight": -1.0},
        {"min_scale_ratio": float("nan")},
        {"likelihood_floor": 1.0},
        {"objective": "nll_max"},
        {"stop_gradient": ["boxes"]},
    ],
)
def test_fields_that_cannot_be_are_refused(fields):
    with pytest.raises(Exception, match=next(iter(fields))):
        DrmmDetrConfig(**fields)


@pytest.mark.parametrize("model_type", ["rt_detr_v2", "drmm"])
def test_a_checkpoint_of_another_kind_is_refused(model_type, tmp_path):
    CONFIG_MAPPING[model_type]().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=model_type):
        DrmmDetrForObjectDetection.from_pretrained(tmp_path)


def test_pipeline_with_the_detectors_own_processor(tmp_path):
    small_detector("rt_detr_v2").save_pretrained(tmp_path / "stock")
    DrmmDetrForObjectDetection.from_detector(tmp_path / "stock").save_pretrained(tmp_path / "drmm")
    for folder in ("stock", "drmm"):
        RTDetrImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path / folder)
    images = [Image.new("RGB", (80, 50), "gray"), Image.new("RGB", (40, 90), "red")]
    found = [
        pipeline("object-detection", model=str(tmp_path / folder), threshold=0.0, batch_size=2)(images)
        for folder in ("stock", "drmm")
    ]
    assert found[0] == found[1]
    assert len(found[0][0]) == 8


def test_trainer(tmp_path):
    """transformers' Trainer, images of different sizes, padded by the stock processor."""
    small_detector("deformable_detr").save_pretrained(tmp_path)
    DeformableDetrImageProcessor(size={"shortest_edge": 48, "longest_edge": 64}).save_pretrained(tmp_path)
    model = DrmmDetrForObjectDetection.from_detector(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    images = [Image.new("RGB", size, "gray") for size in ((64, 48), (48, 64))]
    record = {"bbox": [10, 10, 20, 20], "category_id": 1, "area": 400, "iscrowd": 0}
    rows = [{"image": image, "annotation": {"image_id": i, "annotations": [record]}} for i, image in enumerate(images)]

    def collate(rows):
        batch = processor(
            images=[row["image"] for row in rows],
            annotations=[row["annotation"] for row in rows],
            return_tensors="pt",
        )
        return {name: batch[name] for name in ("pixel_values", "pixel_mask", "labels")}

    options = TrainingArguments(
        output_dir=str(tmp_path / "out"),
        max_steps=2,
        per_device_train_batch_size=2,
        remove_unused_columns=False,
        report_to=[],
        save_strategy="no",
        logging_steps=1,
        use_cpu=True,
    )
    trainer = Trainer(model=model, args=options, train_dataset=rows, data_collator=collate)
    before = model.edge_scales.weight.detach().clone()
    trainer.train()
    assert all("loss" in entry for entry in trainer.state.log_history[:2])
    assert not torch.equal(before, model.edge_scales.weight)
