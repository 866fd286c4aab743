"""The example of the whole way runs, and every step of it keeps what the one before had."""

import pytest

from examples.finetune import main


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_whole_way(tmp_path):
    found = main(tmp_path, epochs=2)
    assert list(found) == ["dense", "decomposed", "fine-tuned", "loaded", "exported"]
    assert found["dense"] > 0.8
    assert found["fine-tuned"] > found["decomposed"] - 0.02
    assert found["fine-tuned"] == found["loaded"] == found["exported"]
    assert {file.name for file in tmp_path.iterdir()} == {"digits.safetensors", "digits.pt2"}
