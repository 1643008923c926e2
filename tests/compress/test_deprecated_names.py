"""Names of earlier versions keep working, with a warning."""

import pytest
import torch
from cases.trained import examples, trained

from fcompress import export, shrink, verify


def test_polish_is_distill():
    x = examples()[0]
    with pytest.warns(DeprecationWarning, match=r"polish= of shrink is called distill="):
        result = shrink(trained(), [x], ratio=0.5, polish=True, polish_seconds=1)
    assert result.distill is not None
    with pytest.warns(DeprecationWarning, match="distill"):
        assert result.polish == result.distill
    assert result.to_dict()["polish"] == result.to_dict()["distill"]
    with pytest.raises(TypeError, match="both"):
        shrink(trained(), [x], polish=True, distill=True)


def test_wide_and_thin_are_original_and_compressed(tmp_path):
    network, x = trained(), examples()[0]
    with pytest.warns(DeprecationWarning) as caught:
        old = verify(wide=network, thin=network, data=x)
    assert [str(w.message).split()[2] for w in caught] == ["wide=", "thin="]
    assert {w.filename for w in caught} == {__file__}
    assert old == verify(network, network, x)
    with pytest.warns(DeprecationWarning, match="original="):
        export(network, tmp_path / "net.safetensors", torch.as_tensor(x), wide=network)
