"""Sentences and rows: the numbers and the words of the field."""

import pytest
from cases.shrunk import agreement, shrunk

from fcompress.certify.agreement import AgreementResult
from fcompress.certify.screening import Copies
from fcompress.exports.exporting import ExportResult
from fcompress.forward.answers.asked import ANSWERS, IN_PARTS, noun_of
from fcompress.report.text import (
    agreement_sentence,
    change_rows,
    changing,
    distill_sentence,
    export_lines,
    history_sentence,
    verdict,
)

PROVEN = (
    "On 300 certification examples 5 changed their label (1.7%), so with 95% confidence at most "
    "3.5% change."
)


def test_a_certificate_in_words():
    assert list(verdict(shrunk())) == [
        "At most 5% of the labels may change.",
        PROVEN,
        "Not pruned: out: output layer.",
    ]


def test_a_size_target_certifies_no_tolerance():
    lines = list(verdict(shrunk(tolerance=None, certified=False)))
    assert lines[:2] == ["Size target: no tolerance is certified (bound 3.5%).", PROVEN]


def test_everything_that_there_may_be_to_say():
    result = shrunk(
        tested=3,
        copies=Copies(shared=2, repeated=1, search=0, test=0),
        warnings=("few examples",),
        test=agreement(0, 200, 0.0149),
        accuracy={"before": 0.915, "after": 0.9},
    )
    assert list(verdict(result))[2:] == [
        "3 candidates were tested on this split; the bound accounts for it.",
        "3 more certification examples do not count: 2 also stand in the calibration or search "
        "data, 1 are copies of others.",
        "Warning: few examples.",
        "On 200 test examples, which nothing else touched, 0 changed their label (0.0%), so with "
        "95% confidence at most 1.5% change.",
        "Accuracy: 91.50% before, 90.00% after.",
        "Not pruned: out: output layer.",
    ]


@pytest.mark.parametrize(
    ("labels", "aim", "proven"),
    [
        (
            "sigmoid",
            "examples may change any of their labels",
            "at least one of their labels (1.7%), so with 95% confidence at most 3.5% of examples",
        ),
    ],
)
def test_other_kinds_of_labels(labels, aim, proven):
    found = agreement(5, 300, 0.0349, labels=labels)
    lines = list(verdict(shrunk(agreement=found)))
    assert lines[0] == f"At most 5% of the {aim}."
    assert proven in lines[1]


def test_bounds_are_rounded_up():
    for bound, shown in ((0.05, "5.0%"), (0.0501, "5.1%"), (0.00991, "1.00%"), (0.0051, "0.51%")):
        assert f"at most {shown} change." in agreement_sentence(agreement(0, 500, bound), "")


@pytest.mark.parametrize(
    ("labels", "what"), [("positions", "positions"), ("tokens", "next tokens")]
)
def test_answers_in_parts(labels, what):
    found = agreement(12.5, 500, 0.0301, labels=labels, positions=0.98, deviation=0.02)
    lines = list(verdict(shrunk(agreement=found)))
    assert lines[0].startswith(f"At most 5% of the {what} of an example may change")
    assert lines[1].startswith(
        f"On 500 certification examples 2.5% of the {what} of an example changed on average, so "
        "with 95% confidence at most 3.1% change."
    )
    # Only sequences of tokens differ in length.
    assert ("Over all their positions 2.0% changed." in lines[1]) == (labels == "tokens")


def test_distilling():
    done = {
        "kept": True,
        "before": {"agreement": 0.91},
        "after": {"agreement": 0.95},
        "stopped_by": "time",
        "examples": 1200,
        "steps": 3000,
        "held_out": 200,
    }
    said = (
        "Distilled on 1,200 unlabelled examples for 3,000 steps (cut short by the time limit): "
        "91.0% of labels agreed on 200 held-out search examples before, 95.0% after."
    )
    assert distill_sentence(done) == said
    assert said in list(verdict(shrunk(distill=done)))
    assert distill_sentence({"kept": False}) == "Distilling made it no better and was undone."


def test_rows_of_what_was_saved():
    assert list(change_rows(shrunk())) == [
        ("parameters", "1,000", "250", "25.0%"),
        ("MACs", "2,000", "1", "0.05%"),
        ("file, bytes", "4,000", "0", "0%"),
        ("latency, ms for 64 examples", "2", "1", "50.0%"),
        ("latency, ms with one example", "0", "1", "-"),
    ]


def test_exports():
    alone = ExportResult("a.pt2", ".pt2", 5000, 300, 300, 1e-7, 1e-3, None, None)
    beside = ExportResult(
        "b.onnx", ".onnx", 6000, 300, 299, 2e-7, 1e-3, agreement(5, 300, 0.0349), 0.05
    )
    assert list(export_lines([alone, beside])) == [
        "Written: a.pt2 (5,000 bytes). Run on 300 examples: 300 labels as in memory, scores differ "
        "by 1e-07 at most (0.001 allowed).",
        "Written: b.onnx (6,000 bytes). Run on 300 examples: 299 labels as in memory, scores "
        "differ by 2e-07 at most (0.001 allowed).",
        "  5 of 300 labels differ from the original network's (1.7%) (5.0% allowed).",
    ]


@pytest.mark.parametrize("kind", [*ANSWERS, "same"])
def test_every_kind_of_answer_has_its_words(kind):
    kind = kind.replace("K", "3")
    parts = kind in IN_PARTS
    result = AgreementResult(
        n=200,
        same=190,
        rate=0.95,
        lower_bound=0.9,
        confidence=0.95,
        largest_difference=1.0,
        mean_difference=0.1,
        accuracy=None,
        labels=kind,
        deviation=0.1 if parts else None,
        answer={"kind": kind},
        matched={"share": 0.97, "lower_bound": 0.94} if kind == "detections" else None,
    )
    said = agreement_sentence(result, "examples")
    assert said.startswith("On 200 examples ") and "at most 10.0%" in said
    assert ("changed their label" in said) == (kind == "classes")
    assert history_sentence(result.to_dict(), "examples") == said
    # What may change, and what was counted, has the same name everywhere.
    assert changing(kind, "20%").startswith(f"20% of the {noun_of(kind)}")
    others = {"sigmoid": "labels", "classes": "labels", "top-3": "labels"}
    assert (noun_of(kind) == "labels") == (kind in others)
    written = ExportResult("a.pt2", ".pt2", 1, 200, 200, 0, 0, result, 0.1, kind)
    lines = " ".join(export_lines([written]))
    assert "200 labels as in memory" not in lines or noun_of(kind) == "labels"
    assert f"of 200 {noun_of(kind)} differ" in lines or f"of the {noun_of(kind)} of 200" in lines
    assert ("at least 94.0%" in said) == (kind == "detections")
