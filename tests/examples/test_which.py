"""The tables of "Which method when" say what the benchmarks and the studies say that they are taken from."""

from examples.which import KEPT, METHODS, ROOT, convolutions, matrices, multiply_adds, read_tables, trainability


def committed(name):
    return (ROOT / "docs" / "which" / f"{name}.md").read_text(encoding="utf-8")


def committed_shares():
    cells = read_tables("which/convolutions.md")[0]["multiply-adds"]
    shares = [
        [float(share.rstrip("%")) / 100 for share in cell.split("\N{NO-BREAK SPACE}·\N{NO-BREAK SPACE}")]
        for cell in cells
    ]
    return {(method, kept): row[n] for method, row in zip(METHODS, shares, strict=True) for n, kept in enumerate(KEPT)}


def test_errors_and_times_of_convolutions_are_those_of_the_benchmarks():
    assert convolutions(committed_shares()) == committed("convolutions")


def test_the_table_of_linear_layers_is_that_of_the_benchmarks():
    assert matrices() == committed("linear")


def test_the_table_of_fine_tuning_is_that_of_the_studies():
    assert trainability() == committed("trainability")


def test_multiply_adds_are_those_of_the_stacks():
    shares = multiply_adds(["tucker", "ht"], ["10%"])
    assert {key: round(share, 2) for key, share in shares.items()} == {key: committed_shares()[key] for key in shares}
