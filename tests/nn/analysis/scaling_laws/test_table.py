"""Tables: columns by any name, conventions of counting, and every cut with its reason."""

from __future__ import annotations

import numpy as np
import pytest

from nn.analysis.scaling_laws import Table

COLUMNS = {
    "N_total": [12.0, 24.0, 48.0],
    "N_matmul": [10.0, 20.0, 40.0],
    "D": [100.0, 200.0, 400.0],
    "L": [3.0, 2.5, 2.2],
    "run": ["a", "b", "c"],
    "status": ["done", "done", "diverged"],
}


def test_a_view_counts_by_one_convention() -> None:
    table = Table.of(COLUMNS)
    assert table.conventions() == ("matmul", "total")
    assert table.view().convention == "matmul"
    np.testing.assert_array_equal(table.view("total").N, [12.0, 24.0, 48.0])
    np.testing.assert_array_equal(table.view("total").C, 6 * np.asarray([1200.0, 4800.0, 19200.0]))
    assert not table.view().exact_flops
    with pytest.raises(ValueError, match="needs the column N_nonemb; this table has matmul, total"):
        table.view("non_embedding")
    with pytest.raises(ValueError, match="unknown convention 'mat'.*nearest: 'matmul'"):
        table.view("mat")


def test_tokens_or_flops_are_found_from_the_other() -> None:
    table = Table.of({"N": [1e6, 2e6], "C": [6e14, 6e14], "L": [3.0, 2.9]})
    np.testing.assert_allclose(table.view().D, [1e8, 5e7])
    with pytest.raises(ValueError, match="needs D .* or C"):
        Table.of({"N": [1.0], "L": [1.0]}).view()


def test_columns_have_any_name_and_rows_may_lack_some() -> None:
    rows = [
        {"params": "1e6", "tokens": 10, "val": 3.0},
        {"params": 2e6, "tokens": 20, "val": 2.0, "lr": 0.1},
    ]
    table = Table.from_rows(rows, N="params", D="tokens", L="val")
    np.testing.assert_array_equal(table.number("N"), [1e6, 2e6])
    assert np.isnan(table.number("lr")[0])
    assert table.number("lr")[1] == 0.1
    with pytest.raises(ValueError, match="unknown column .for L. 'vall'.*nearest: 'val'"):
        Table.from_rows(rows, N="params", D="tokens", L="vall")
    with pytest.raises(ValueError, match="no column L"):
        Table.from_rows(rows)
    with pytest.raises(ValueError, match="different lengths"):
        Table.of({"L": [1.0, 2.0], "N": [1.0]})


def test_every_run_that_is_left_out_is_listed_with_its_reason() -> None:
    table = Table.of({**COLUMNS, "L": [float("nan"), 2.5, 2.2], "D": [100.0, 200.0, 0.0]})
    assert [(e.run, e.reason) for e in table.excluded] == [
        ("c", "D is not a finite positive number"),
        ("a", "L is not a finite positive number"),
    ]
    table = Table.of(COLUMNS).filter("status == done and L < 2.9").drop_highest(0)
    assert list(table.columns["run"]) == ["b"]
    assert [(e.run, e.reason) for e in table.excluded] == [
        ("c", "not status == done"),
        ("a", "not L < 2.9"),
    ]
    assert [e.run for e in Table.of(COLUMNS).drop_highest(2).excluded] == ["a", "b"]
    with pytest.raises(ValueError, match="write COLUMN OPERATOR VALUE"):
        table.filter("L is 3")
    with pytest.raises(ValueError, match="holds numbers: 'many' is none"):
        Table.of(COLUMNS).filter("L < many")
    with pytest.raises(ValueError, match="no rows left of 3: not L < 1"):
        Table.of(COLUMNS).filter("L < 1").view()
    assert len(Table.of(COLUMNS).drop_highest(9)) == 0
    with pytest.raises(ValueError, match="unknown column 'lose'"):
        table.filter("lose < 3")


def test_budgets_by_group_or_by_compute() -> None:
    C = [1e18, 1.04e18, 1e19, 0.98e18, 1.02e19]
    columns = {"N": [1.0] * 5, "C": C, "D": [1.0] * 5, "L": [2.0] * 5}
    np.testing.assert_array_equal(Table.of(columns).view().budgets(), [0, 0, 1, 0, 1])
    group = ["z", "z", "a", "z", "a"]
    np.testing.assert_array_equal(
        Table.of({**columns, "group": group}).view().budgets(), [0, 0, 1, 0, 1]
    )
