"""Use an installed tdcompress, without its optional dependencies: compress a layer, save, load, and say so."""

import tempfile
from pathlib import Path

import torch

import tdcompress as td

model = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU(), torch.nn.Conv2d(16, 16, 3))
small = td.compress(model, 0.5, data=[torch.randn(8, 3, 10, 10)], progress=False)
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "small.safetensors"
    td.save(small, path)
    again = td.load(path, into=model)
images = torch.randn(2, 3, 10, 10)
if not torch.equal(again.eval()(images), small.eval()(images)):
    raise SystemExit("what was loaded is not what was saved")
print(td.report(again, images))
print(f"tdcompress {td.__version__} from {Path(td.__file__).parent}")
