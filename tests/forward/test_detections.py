"""Detectors: whose boxes match, what of them is compressed, and what is certified."""

import pytest
import torch
from cases import detectors
from torch import nn
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator

from fcompress import analyze, find_groups, load, save, shrink, verify
from fcompress.certify.bounded_mean import betting_bound
from fcompress.errors import FcompressError, UnsupportedNetworkError
from fcompress.forward.answers import boxes
from fcompress.forward.answers.detections import Detections
from fcompress.forward.predictor import Predictor
from fcompress.report.text import agreement_sentence

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.rand(4, 3, 32, 32, generator=GENERATOR)
BOX = [10.0, 10.0, 20.0, 20.0]


def image(*found):
    """(box, label, score) as a detector gives them."""
    given = [torch.tensor([one[part] for one in found]) for part in range(3)]
    return {"boxes": given[0].reshape(-1, 4), "labels": given[1].long(), "scores": given[2]}


def same(ours, theirs, **how):
    scoring = Detections(None, "detections", **how)
    one, other = (boxes.encoded([found], scoring.least[0]) for found in (ours, theirs))
    assert scoring.changed(other, one).tolist() == scoring.changed(one, other).tolist()
    assert scoring.changed(one, other).item() == (scoring.matched(one, other).item() < 1)
    return not scoring.changed(one, other).item()


def test_an_image_keeps_its_answer_if_every_box_has_a_match():
    one = image((BOX, 1, 0.9))
    moved = [10.0, 10.0, 20.0, 23.0]  # an overlap of 100 of 130
    assert same(one, one) and same(one, image((moved, 1, 0.6)))
    assert not same(one, image((moved, 1, 0.6)), iou=0.8)
    assert not same(one, image((BOX, 2, 0.9)))
    assert not same(one, image((BOX, 1, 0.9), ([0.0, 0.0, 5.0, 5.0], 1, 0.6)))
    assert not same(one, image((BOX, 1, 0.4)))  # below the score
    assert same(one, image((BOX, 1, 0.4)), score=0.3)
    assert same(one, image((BOX, 1, 0.9), ([0.0, 0.0, 5.0, 5.0], 1, 0.4)))
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0), "scores": torch.zeros(0)}
    assert same(nothing, nothing) and not same(one, nothing)
    # One box is no match for two.
    assert not same(one, image((BOX, 1, 0.9), (BOX, 1, 0.8)))
    assert not same(image((BOX, 1, torch.nan)), image((BOX, 1, torch.nan)))


def test_as_many_boxes_match_as_can():
    """Whichever box is asked first: here it has to leave its best match to the other."""
    left, middle, right = ([at, 0.0, at + 10, 10.0] for at in (0.0, 2.0, 4.0))
    ours = image((middle, 1, 0.9), (left, 1, 0.8))
    theirs = image((left, 1, 0.9), (right, 1, 0.8))
    assert same(ours, theirs, iou=0.6)
    assert not same(ours, theirs, iou=0.9)
    both = boxes.encoded([ours, theirs], 0.5)
    assert boxes.shares(both[:1], both[1:], 0.9).item() == 0.5
    with pytest.raises(FcompressError, match=r"301 boxes .* larger --score"):
        boxes.encoded([image(*[(BOX, 1, 0.9)] * 301)], 0.5)


def retina():
    body = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU())
    body.out_channels = 16
    anchors = AnchorGenerator(((8, 16),), ((0.5, 1.0, 2.0),))
    sizes = {"min_size": 48, "max_size": 64}
    return detection.RetinaNet(body, 3, anchor_generator=anchors, **sizes)


def fcos():
    body = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU(), nn.Conv2d(8, 64, 3, 2, 1), nn.ReLU())
    body.out_channels = 64
    anchors = AnchorGenerator(((8,),), ((1.0,),))
    return detection.FCOS(body, 3, anchor_generator=anchors, min_size=32, max_size=32)


@pytest.mark.parametrize("make", [detectors.small_ssd, retina, fcos])
def test_boxes_made_of_the_heads_are_those_of_the_whole_detector(make):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = make().eval()
    network.score_thresh = 0.0
    least = 0.3 if make is detectors.small_ssd else 1e-3
    scoring = Detections(None, "detections", score=least).traced(network)
    with torch.no_grad():
        given = network(list(IMAGES))
        heads = Predictor(network, None, scoring.bound(network, IMAGES))
        found = heads.labels(IMAGES)
    assert sum(len(one["scores"]) for one in given) > 4
    expected = boxes.encoded(given, least)
    # Boxes are compared where the network finds them, in images of its own size.
    there = expected[..., 4:5] != boxes.NONE
    expected[..., :4] *= torch.where(there, heads.scoring.heads.size[0] / 32, 1.0)
    assert torch.allclose(found, expected, atol=1e-3)
    # The answer of an image does not hang on those beside it, nor on anything but its own heads.
    broken = heads.scores(IMAGES).detach()
    broken[1, 3, 5] = torch.nan
    assert heads.scoring.broken(heads.scoring.labels_of(broken)).tolist() == [False, True] + 2 * [0]


class OneTensor(nn.Module):
    """As ultralytics' detectors: [n, 4 + 3 classes, anchors] before suppression."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.body = nn.Sequential(
                nn.Conv2d(3, 16, 3, 4, 1), nn.ReLU(), nn.Conv2d(16, 24, 3, 2, 1), nn.ReLU()
            )
            self.head = nn.Conv2d(24, 7, 1)
            nn.init.normal_(self.head.weight, std=0.6)

    def forward(self, x):
        raw = self.head(self.body(x - 0.5)).flatten(2)
        at = torch.arange(16, device=x.device)
        center = torch.stack([at % 4, at // 4]) * 8 + 4 + 4 * raw[:, :2].tanh()
        return torch.cat([center, 8 + 4 * raw[:, 2:4].tanh(), (5 * raw[:, 4:]).sigmoid()], 1), None


def test_one_tensor_before_suppression():
    network = OneTensor()
    with torch.no_grad():
        (tensor, _), least = network(IMAGES), 0.5
    found = boxes.suppressed(tensor, least)
    assert 4 < sum(len(one["scores"]) for one in found) < tensor[:, 4:].ge(0.5).any(1).sum() + 1
    double = torch.tensor([[[10.0, 11, 30], [10, 10, 30], [8, 8, 8], [8, 8, 8], [0.9, 0.8, 0.7]]])
    (one,) = boxes.suppressed(double, least)
    assert one["scores"].tolist() == pytest.approx([0.9, 0.7])
    assert one["boxes"][0].tolist() == [6, 6, 14, 14]
    x = torch.rand(400, 3, 32, 32, generator=GENERATOR)
    # Compared as it is shipped or by its tensor: the same answer.
    result = shrink(network, x, tol=0.4, answer="detections", method="factor")
    assert result.certified and result.macs["after"] < result.macs["before"]
    again = verify(network, result.model, x[:100], answer="detections")
    assert again.matched is not None and result.agreement.matched is not None
    assert again.rate <= again.matched["share"] and again.matched["lower_bound"] >= (
        again.lower_bound - 0.05
    )
    assert again.to_dict()["matched"] == again.matched
    assert "of the boxes of an image had a match" in agreement_sentence(again, "images")
    with torch.no_grad():
        raw = [one(x[:100])[0] for one in (network, result.model)]
    ours, theirs = (boxes.encoded(boxes.suppressed(one, 0.5), 0.5) for one in raw)
    by_hand = boxes.shares(ours, theirs, 0.5)
    assert again.matched["share"] == pytest.approx(float(by_hand.mean()))
    assert again.matched["lower_bound"] == pytest.approx(
        1 - betting_bound((1 - by_hand).numpy(), 0.95)
    )
    assert again.changed < 40 and again.answer == {"kind": "detections", "score": 0.5, "iou": 0.5}


@pytest.mark.parametrize("make", [detectors.small_ssd, fcos, OneTensor])
def test_fisher_information_is_the_curvature_of_the_divergence(make):
    network = make().eval()
    scoring = Detections(None, "detections").traced(network)
    scoring = scoring.bound(network, IMAGES)
    with torch.no_grad():
        scores = Predictor(network, None, scoring).scores(IMAGES[:1]).double()
    step = 1e-3 * torch.randn(scores.shape, generator=GENERATOR).double()
    many = scores.expand(3000, *scores.shape[1:]).clone().requires_grad_()
    scoring.surprise(many, torch.Generator().manual_seed(0)).backward()
    predicted = float((many.grad * step).flatten(1).sum(1).square().mean() / 2)
    measured = scoring.divergence(*(scoring.log_probabilities(s) for s in (scores + step, scores)))
    assert predicted == pytest.approx(float(measured), rel=0.15)
    assert float(scoring.divergence(*2 * [scoring.log_probabilities(scores)])) == 0


def test_two_stages_are_refused_in_words_that_say_what_is_possible(tmp_path):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = detection.fasterrcnn_mobilenet_v3_large_320_fpn(
            weights=None, weights_backbone=None, num_classes=3, min_size=64, max_size=64
        ).eval()
    images = torch.rand(200, 3, 64, 64, generator=GENERATOR)
    possible = "detectors of one stage .* are compressed, and any are compared by verify"
    for run, how, words in (
        (shrink, {}, "say --answer detections"),
        (shrink, {"answer": "detections"}, "a detector of two stages"),
        (analyze, {"answer": "detections"}, "a detector of two stages"),
        (lambda net, x: verify(net, net, x[:4]), {}, "say --answer detections"),
    ):
        with pytest.raises(UnsupportedNetworkError, match=f"{words}.*{possible}") as error:
            run(network, images, **how)
        assert "\n" not in str(error.value)
    assert verify(network, network, images[:4], score=0.0).rate == 1
    # It gives as many boxes as it finds: nothing to prove units by, and no fault.
    assert isinstance(find_groups(network, images[:2]).groups, list | tuple)


def test_what_is_no_detector_is_refused():
    with pytest.raises(UnsupportedNetworkError, match="expected what detectors give"):
        verify(nn.Linear(4, 3), nn.Linear(4, 3), torch.randn(20, 4), answer="detections")
    staged = nn.Module()
    staged.roi_heads = nn.Linear(1, 1)
    with pytest.raises(UnsupportedNetworkError, match="detector of two stages"):
        Detections(None, "detections").traced(staged)

    class Finished(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return [image((row.tolist(), 1, 0.9)) for row in self.layer(x)]

    with pytest.raises(UnsupportedNetworkError, match="behind suppression"):
        shrink(Finished(), torch.randn(400, 4), answer="detections")
    with pytest.raises(FcompressError, match=r"no box has a score from 0.99 on .* smaller --score"):
        verify(OneTensor(), OneTensor(), IMAGES * 0, score=0.99)
    for bad in ({"score": 1.5}, {"iou": 0}, {"answer": "classes", "iou": 0.5}):
        with pytest.raises(ValueError, match=r"score=1.5|iou=0: expected|belongs to"):
            verify(OneTensor(), OneTensor(), IMAGES, **bad)


@pytest.mark.slow
def test_a_trained_detector_is_shrunk_certified_and_opened_again(tmp_path):
    network = detectors.trained(detectors.small_ssd(), 250)
    images, targets = detectors.shapes(900, 7)
    with torch.no_grad():
        found = boxes.encoded(network(list(images[:200])), 0.5)
    wanted = boxes.encoded([{**t, "scores": torch.ones(len(t["labels"]))} for t in targets], 0.5)
    assert boxes.shares(wanted[:200], found, 0.5).mean() > 0.85
    result = shrink(network, images, tol=0.1, answer="detections")
    assert result.certified and result.agreement.upper_bound <= 0.1
    assert result.macs["after"] < 0.6 * result.macs["before"]
    # What was certified of the heads holds of the whole detectors, as they are shipped.
    fresh, _ = detectors.shapes(300, 9)
    save(result.model, tmp_path / "thin.pt")
    opened = load(tmp_path / "thin.pt", arch=detectors.small_ssd)
    checked = verify(network, opened, fresh)
    assert checked.labels == "detections" and checked.rate > 0.9
    # A network that gives as many boxes of the same labels elsewhere passes by labels alone.
    shifted = load(tmp_path / "thin.pt", arch=detectors.small_ssd)
    with torch.no_grad():
        for layer in shifted.head.regression_head.module_list:
            layer.bias += 4.0 * torch.tensor([1.0, 1.0, 0.0, 0.0]).repeat(len(layer.bias) // 4)

    def labels_alone(one, other):
        ours, theirs = (side[..., 5].sort(1).values for side in (one, other))
        return (ours == theirs).all(1)

    with torch.no_grad():
        both = [boxes.encoded(n(list(fresh)), 0.5) for n in (network, shifted)]
    assert labels_alone(*both).double().mean() > 0.5
    assert verify(network, shifted, fresh).rate < 0.25


@pytest.mark.slow
def test_torchvisions_ssdlite_is_shrunk_certified_and_opened_again(tmp_path):
    """The real one: of half the width and for small images, so that it is trained in minutes."""
    network = detectors.trained(detectors.ssdlite(), 400, 16, warming=True)
    images, targets = detectors.shapes(200, 7)
    with torch.no_grad():
        found = boxes.encoded(network(list(images)), 0.5)
    wanted = boxes.encoded([{**t, "scores": torch.ones(len(t["labels"]))} for t in targets], 0.5)
    assert boxes.shares(wanted, found, 0.5).mean() > 0.75
    data, _ = detectors.shapes(700, 11)
    result = shrink(network, data, tol=0.1, answer="detections", calibration=96)
    assert result.certified and result.agreement.upper_bound <= 0.1
    assert result.macs["after"] < 0.8 * result.macs["before"]
    save(result.model, tmp_path / "thin.pt")
    opened = load(tmp_path / "thin.pt", arch=detectors.ssdlite)
    fresh, _ = detectors.shapes(200, 9)
    checked = verify(network, opened, fresh)
    assert checked.labels == "detections" and checked.rate > 0.85
    with torch.no_grad():
        ours, theirs = (one(list(fresh[:20])) for one in (result.model, opened))
    assert all(torch.equal(a["boxes"], b["boxes"]) for a, b in zip(ours, theirs, strict=True))
