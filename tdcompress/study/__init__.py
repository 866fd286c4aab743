"""The paper's study on any model: a grid of trials, measured once each, on any number of machines.

>>> import tempfile, torch, tdcompress as td
>>> from tdcompress.study import Study
>>> model = torch.nn.Sequential(torch.nn.Conv2d(4, 8, 3), torch.nn.Flatten())
>>> def evaluate(model):
...     return {"norm": float(model(torch.ones(1, 4, 3, 3)).norm())}
>>> study = Study(model, "0", ["cp", "tucker"], [0.5, 0.75], runs=2, evaluate=evaluate)
>>> table = study.run(f"{tempfile.mkdtemp()}/study.sqlite", progress=False)
>>> list(table.columns[:5]), len(table)
(['layer', 'method', 'ratio', 'run', 'rank'], 8)
"""

from tdcompress.study.executors import processes
from tdcompress.study.grid import Trial
from tdcompress.study.prefix import PrefixCache
from tdcompress.study.study import Study
from tdcompress.study.tables import export, read

__all__ = ["PrefixCache", "Study", "Trial", "export", "processes", "read"]
