"""decompose() of whole models: what is skipped, what is refused and left, and what the model says of it."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

import tdcompress as td
from tdcompress.methods import METHODS, taking_matrices
from tdcompress.surgery.left import left_dense

SKIPPED = "skipped, as asked."


class Small(nn.Module):
    """A stem, two blocks, of which the second has a convolution that tucker cannot make smaller, and a head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.blocks = nn.Sequential(
            nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1)),
            nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.ReLU(), nn.Conv2d(16, 32, 1)),
        )
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


DEPTHWISE = "blocks.1.0"


def factorized(model):
    return [name for name, module in model.named_modules() if isinstance(module, td.FactorizedConv)]


class TestSkip:
    @pytest.mark.parametrize(
        ("skip", "done"),
        [
            ("blocks.1", ["stem", "blocks.0.0", "blocks.0.2"]),  # a module with all that is in it
            (["stem", "blocks.1"], ["blocks.0.0", "blocks.0.2"]),
            (["*.1", "blocks.0.?"], ["stem"]),
            (["blocks.1", "head"], ["stem", "blocks.0.0", "blocks.0.2"]),  # the head was not meant anyway
            (
                lambda name, module: module.in_channels == 3 or module.groups > 1,
                ["blocks.0.0", "blocks.0.2", "blocks.1.2"],
            ),
        ],
    )
    def test_names_globs_lists_and_predicates(self, skip, done):
        small = td.decompose(Small(), "*", "tucker", 0.3, skip=skip)
        assert factorized(small) == done
        every = {"stem", "blocks.0.0", "blocks.0.2", DEPTHWISE, "blocks.1.2"}
        assert left_dense(small) == dict.fromkeys(sorted(every - set(done)), SKIPPED)

    def test_an_empty_list_skips_nothing(self):
        small = td.decompose(Small(), "blocks.0.*", "tucker", 0.3, skip=[])
        assert factorized(small) == ["blocks.0.0", "blocks.0.2"]

    def test_a_shared_module_is_skipped_by_any_of_its_names(self):
        conv = nn.Conv2d(16, 16, 3)
        model = nn.Sequential(conv, nn.Conv2d(16, 16, 3), conv)
        assert factorized(td.decompose(model, "*", "tucker", 0.3, skip="2")) == ["1"]

    def test_a_tie_with_what_is_skipped_is_not_cut(self):
        model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
        model[1].weight = model[0].weight
        with pytest.raises(td.CompressionError, match=r"layer '1': it shares a parameter with '0.weight'"):
            td.decompose(model, "*", "svd", 0.3, skip="0")
        small: Any = td.decompose(model, "*", "svd", 0.3, skip="0", on_refusal="skip")
        assert factorized(small) == ["2"]
        assert small[0].weight is small[1].weight

    @pytest.mark.parametrize(
        ("skip", "message"),
        [
            ("haed", "skip=: the model has no layer 'haed'; did you mean 'head'"),
            (["head", "x.y"], "skip=: the model has no layer 'x.y'; there are 'stem', 'blocks', 'head'"),
            ("q*", r"skip=: the model has no layer 'q\*'; there are"),
            (3, "skip= takes a name, a glob, a list of those, or a predicate, got a int"),
            ([3], "skip= lists names and globs, got a int, 3"),
            (nn.ReLU(), "skip= takes a name, .* got a ReLU"),
            ("*", "skip= leaves nothing to do: it means every layer, 'stem', 'blocks.0.0'"),
            ("", "skip= leaves nothing to do"),
            (lambda name, module: True, "skip= leaves nothing to do"),
        ],
    )
    @pytest.mark.parametrize("inplace", [False, True])
    def test_bad_ones_are_refused_and_nothing_is_changed(self, skip, message, inplace):
        model = Small()
        modules = list(model.modules())
        with pytest.raises(td.CompressionError, match=message):
            td.decompose(model, "*", "tucker", 0.3, skip=skip, inplace=inplace, on_refusal="skip")
        assert list(model.modules()) == modules
        assert left_dense(model) == {}


class TestRefused:
    @pytest.mark.parametrize("inplace", [False, True])
    @pytest.mark.parametrize("layer", ["*", lambda name, module: True, ["stem", "blocks.0.*", DEPTHWISE, "blocks.1.2"]])
    def test_what_can_be_done_is_done(self, layer, inplace):
        model = Small()
        reason = td.refusals(model, "tucker", 0.3)[DEPTHWISE]
        small = td.decompose(model, layer, "tucker", 0.3, on_refusal="skip", inplace=inplace)
        assert (small is model) == inplace
        assert factorized(small) == ["stem", "blocks.0.0", "blocks.0.2", "blocks.1.2"]
        assert left_dense(small) == {DEPTHWISE: reason}
        assert left_dense(model) == ({DEPTHWISE: reason} if inplace else {})
        assert small(torch.randn(1, 3, 6, 6)).shape == (1, 10)

    def test_what_is_done_does_not_depend_on_what_is_left(self):
        small: Any = td.decompose(Small(), "*", "cp", 0.3, on_refusal="skip", seed=4)
        alone: Any = td.decompose(td.restore(small), "stem", "cp", 0.3, seed=4)
        assert alone.stem.ranks == small.stem.ranks

    def test_otherwise_the_first_is_raised_and_the_way_on_is_named(self):
        message = (
            r"layer 'blocks.1.0': .* another method. 1 of 5 layers is refused; to leave it dense, pass on_refusal="
        )
        with pytest.raises(td.CompressionError, match=message):
            td.decompose(Small(), "*", "tucker", 0.3)
        message = r"^layer 'stem': .* 2 of 5 layers are refused; to leave them dense, pass on_refusal='skip'\.$"
        model = Small()
        model.stem.register_forward_hook(lambda *args: None)
        with pytest.raises(td.CompressionError, match=message):
            td.decompose(model, "*", "tucker", 0.3)

    @pytest.mark.parametrize("layer", [DEPTHWISE, [DEPTHWISE], "blocks.1.[0]"])
    def test_a_layer_that_is_asked_for_alone_is_raised(self, layer):
        with pytest.raises(td.CompressionError, match=r"^layer 'blocks.1.0': tucker cannot .* another method\.$"):
            td.decompose(Small(), layer, "tucker", 0.3, on_refusal="skip")

    def test_where_nothing_can_be_done_the_reasons_are_listed(self):
        sizes = (1, 1, 2, 3, 4, 5, 6, 7)
        model = nn.Sequential(*(nn.Linear(n, n) for n in sizes))
        with pytest.raises(td.CompressionError) as caught:
            td.decompose(model, "*", "svd", 0.95, on_refusal="skip")
        first, *reasons = str(caught.value).splitlines()
        assert first == "no layer can be decomposed."
        assert reasons[0].startswith("'0', '1': svd cannot make this layer smaller")
        assert reasons[-1].startswith("… and 2 more reasons; td.refusals(model")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"ratio": 1.5}, r"'stem', 'blocks.0.0', .*: ratio must be between 0 and 1"),
            ({"layer": ["stem", "nowhere"]}, "the model has no layer 'nowhere'"),
            ({"on_refusal": "ignore"}, "on_refusal must be 'raise' or 'skip', got 'ignore'"),
        ],
    )
    def test_what_cannot_be_meant_is_still_an_error(self, change, message):
        arguments = {"layer": "*", "method": "tucker", "ratio": 0.3, "on_refusal": "skip"} | change
        with pytest.raises(td.CompressionError, match=message):
            td.decompose(Small(), **arguments)

    def test_what_shares_a_parameter_with_what_is_left_is_left(self):
        model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
        model[1].weight, model[2].bias = model[0].weight, model[1].bias
        model[0].register_forward_hook(lambda *args: None)
        small = td.decompose(model, "*", "svd", 0.3, on_refusal="skip")
        assert factorized(small) == ["3"]
        reasons = left_dense(small)
        assert "carries hooks" in reasons["0"]
        assert "it shares a parameter with '0.weight'" in reasons["1"]
        assert "it shares a parameter with '1.bias'" in reasons["2"]

    def test_what_a_solver_refuses_is_left_too(self):
        model: Any = nn.Sequential(nn.Conv1d(8, 8, 3), nn.Conv1d(8, 8, 3))
        nn.init.ones_(model[0].weight)
        td.register_method("picky")(Picky)
        try:
            small = td.decompose(model, "*", "picky", 0.3, on_refusal="skip")
            assert left_dense(small) == {"0": "all its weights are one."}
            with pytest.raises(td.CompressionError, match=r"^layer '0': all its weights are one\.$"):
                td.decompose(model, "*", "picky", 0.3)
        finally:
            td.methods.METHODS.pop("picky")


class Picky(td.SVDConv):
    @staticmethod
    def choose_ranks(kernels, budget, options):
        if (kernels == 1).all():
            raise td.CompressionError("all its weights are one.")
        return td.SVDConv.choose_ranks(kernels, budget, options)


class TestWhatTheModelSays:
    @pytest.fixture
    def small(self):
        return td.decompose(Small(), "*", "tucker", 0.3, on_refusal="skip", skip="stem")

    def test_the_report_names_it(self, small):
        report = td.report(small)
        reason = td.refusals(Small(), "tucker", 0.3)[DEPTHWISE]
        assert report.left == (("stem", SKIPPED), (DEPTHWISE, reason))
        lines = [f"left dense: 'stem': {SKIPPED}", f"left dense: 'blocks.1.0': {reason}"]
        assert str(report).splitlines()[-2:] == lines
        assert report.to_markdown().split("\n\n")[1:] == lines
        assert td.report(td.decompose(Small(), "stem", "tucker", 0.3)).left == ()

    def test_layers_with_one_reason_have_one_line(self):
        model = nn.Sequential(*(nn.Conv2d(8, 8, 3) for _ in range(8)))
        small = td.decompose(model, "*", "cp", 0.3, skip=["[1-7]"])
        assert str(td.report(small)).endswith(f"left dense: '1', '2', '3', '4', '5' and 2 more: {SKIPPED}")

    def test_it_survives_copies_pickles_and_files(self, small, tmp_path):
        said = left_dense(small)
        assert len(said) == 2
        assert left_dense(copy.deepcopy(small)) == said
        assert left_dense(pickle.loads(pickle.dumps(small))) == said
        td.save(small, tmp_path / "small.safetensors")
        for inplace in (False, True):
            fresh = Small()
            assert left_dense(td.load(tmp_path / "small.safetensors", into=fresh, inplace=inplace)) == said
            assert left_dense(fresh) == (said if inplace else {})
        assert list(small.state_dict()) == list(copy.deepcopy(small).state_dict())

    @pytest.mark.parametrize("inplace", [False, True])
    def test_a_later_call_takes_its_layer_off(self, small, inplace):
        again = td.decompose(small, "stem", "cp", 0.3, inplace=inplace)
        assert list(left_dense(again)) == [DEPTHWISE]
        assert list(left_dense(small)) == ([DEPTHWISE] if inplace else ["stem", DEPTHWISE])
        more = td.decompose(again, DEPTHWISE, "svd", 0.3)
        assert left_dense(more) == {}

    @pytest.mark.parametrize("inplace", [False, True])
    def test_restoring_all_takes_all_off(self, small, inplace):
        assert len(left_dense(td.restore(small, "blocks.0.0"))) == 2
        assert left_dense(td.restore(small, inplace=inplace)) == {}

    def test_a_part_of_a_model_keeps_what_it_says(self):
        whole = nn.ModuleDict({"part": td.decompose(Small(), "*", "tucker", 0.3, skip="stem", on_refusal="skip")})
        assert list(left_dense(whole)) == ["part.stem", f"part.{DEPTHWISE}"]
        done = td.decompose(whole, "part.stem", "cp", 0.3)
        assert list(left_dense(done)) == [f"part.{DEPTHWISE}"]

    def test_files_that_do_not_say_it_are_read(self, small, tmp_path):
        from tdcompress.serialization.document import document_of, parse

        text = document_of({}, {}, {"a": "b\x1b[31m"})
        assert parse(text) == ([], {}, {"a": "b [31m"})  # nothing that a terminal obeys
        assert parse('{"version": 1, "layers": [], "aliases": {}}') == ([], {}, {})
        with pytest.raises(td.CompressionError, match="its description is damaged: left_dense is"):
            parse('{"version": 1, "layers": [], "aliases": {}, "left_dense": {"a": 1}}')


@pytest.mark.parametrize("method", sorted(set(METHODS) - set(taking_matrices())))
def test_a_model_of_matrices_is_told_which_method_takes_them(method):
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    known = ", ".join(map(repr, taking_matrices()))
    with pytest.raises(td.CompressionError, match=rf"no convolution; .* Its 2 layers with a matrix.*: {known}\."):
        td.decompose(model, "*", method, 0.3)


def test_the_copy_of_a_module_that_is_itself_the_layer_says_nothing():
    small = td.decompose(nn.Conv2d(8, 8, 3), "*", "tucker", 0.3, on_refusal="skip")
    assert isinstance(small, td.TuckerConv)
    assert left_dense(small) == {}
