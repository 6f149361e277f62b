"""What columns of a table become, whoever has them: widths and scales by run.toml alone; and rows
that can't be used, skipped and counted.
"""

from __future__ import annotations

import json
from datetime import date, datetime
from math import cos, pi, sin
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from node import data
from node.config import RunConfig, TaskSection, load, write
from peer.errors import DataError

SEX = {"kind": "category", "values": ["f", "m"]}
DOSE = {"kind": "number", "center": 5, "scale": 3}


def section(**features: object) -> TaskSection:
    return TaskSection.model_validate({"data": "own", "classes": 2, "features": features})


def read(folder: Path, text: str, task: TaskSection) -> list[list[float]]:
    path = folder / "mine.csv"
    path.write_text(text, encoding="utf-8")
    examples = data.own(path, task)
    return examples.x.view(len(examples), -1).tolist()


def test_a_missing_number_has_a_value_and_a_flag(tmp_path: Path) -> None:
    task = section(dose={**DOSE, "missing": 8, "flag": True})
    text = "dose,label\n5,0\n,1\nNA,1\n2,0\n"
    assert read(tmp_path, text, task) == [[0, 0], [1, 1], [1, 1], [-1, 0]]
    task = section(dose={**DOSE, "missing": 8})
    assert read(tmp_path, text, task) == [[0], [1], [1], [-1]]


def test_a_number_is_clipped_after_scaling(tmp_path: Path) -> None:
    text = "dose,label\n5,0\n50000,1\n-1000,1\n6.5,1\n"
    assert read(tmp_path, text, section(dose={**DOSE, "clip": 4})) == [[0], [4], [-4], [0.5]]
    with pytest.raises(DataError, match=r"has values beyond ±20 \(see row 2\)"):
        read(tmp_path, text, section(dose=DOSE))
    with pytest.raises(DataError, match="has empty or infinite values"):
        read(tmp_path, "dose,label\ninf,0\n", section(dose={**DOSE, "clip": 4}))


def test_a_category_has_a_place_of_its_own_also_where_no_row_has_it(tmp_path: Path) -> None:
    task = section(sex=SEX, ward={"kind": "category", "values": ["1", "2", "3"]})
    text = "ward,sex,label\n1.0, m ,0\n3,m,1\n"
    assert read(tmp_path, text, task) == [[0, 1, 1, 0, 0], [0, 1, 0, 0, 1]]


def test_an_unknown_category_is_a_slot_or_a_bad_row(tmp_path: Path) -> None:
    text = "sex,label\nf,0\nx,1\n,1\n"
    slot = section(sex={**SEX, "unknown": "slot"})
    assert read(tmp_path, text, slot) == [[1, 0, 0], [0, 0, 1], [0, 0, 1]]
    with pytest.raises(DataError, match=r"'sex' has in row 2 none of the categories") as caught:
        read(tmp_path, text, section(sex=SEX))
    assert "x" not in str(caught.value).partition("row 2")[2].partition("none")[0]


def circle(share: float) -> list[object]:
    return [
        pytest.approx(sin(2 * pi * share), abs=1e-6),
        pytest.approx(cos(2 * pi * share), abs=1e-6),
    ]


def test_the_parts_of_a_date(tmp_path: Path) -> None:
    parts = ["year", "month", "weekday", "hour"]
    task = section(seen={"kind": "date", "parts": parts, "flag": True})
    x = read(tmp_path, "seen,label\n2024-07-04T18:00,0\n1990-01-01,1\n,1\n", task)
    july = [pytest.approx(2.4), *circle(6 / 12), *circle(3 / 7), *circle(18 / 24), 0]
    assert x[:2] == [july, [-1, *circle(0), *circle(0), *circle(0), 0]]
    assert x[2] == [0] * 7 + [1]
    german = section(seen={"kind": "date", "parts": ["day"], "format": "%d.%m.%Y"})
    assert read(tmp_path, "seen,label\n31.12.1999,0\n", german) == [circle(30 / 31)]
    with pytest.raises(DataError, match=r"'seen' is no date in row 1: %d.%m.%Y is expected"):
        read(tmp_path, "seen,label\n1999-12-31,0\n", german)


def test_columns_of_parquet_have_types_of_their_own(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pip install 'peerpoise[tables]'")
    from pyarrow import parquet

    noon = pyarrow.array([datetime(2024, 7, 4, 12), None], pyarrow.timestamp("ns"))
    rows = {
        "day": [date(2020, 1, 1), None], "noon": noon, "flag": [True, False], "ward": [1, None],
        "dose": [5, float("nan")], "label": [0, 1],
    }  # fmt: skip
    parquet.write_table(pyarrow.table(rows), tmp_path / "mine.parquet")
    task = section(
        day={"kind": "date", "parts": ["year"], "flag": True},
        noon={"kind": "date", "parts": ["hour"], "flag": True},
        flag={"kind": "category", "values": ["false", "true"]},
        ward={"kind": "category", "values": ["1", "2"], "unknown": "slot"},
        dose={**DOSE, "missing": 8},
    )
    x = data.own(tmp_path / "mine.parquet", task).x.flatten(1).tolist()
    assert x == [
        [2, 0, *circle(0.5), 0, 0, 1, 1, 0, 0, 0],
        [0, 1, 0, 0, 1, 1, 0, 0, 0, 1, 1],
    ]


@pytest.mark.parametrize("rows", ["5,f,0\n", "5,f,0\n2,m,1\n,,1\n900,q,1\n"])
def test_the_width_is_known_without_a_row(tmp_path: Path, rows: str) -> None:
    task = section(
        dose={**DOSE, "missing": 5, "flag": True, "clip": 3},
        sex={**SEX, "unknown": "slot"},
        note={"kind": "ignore"},
    )
    width = sum(feature.width for feature in task.features.values())
    assert {len(row) for row in read(tmp_path, "dose,sex,label\n" + rows, task)} == {width} == {5}


def test_a_row_becomes_the_same_whatever_the_other_rows_are(tmp_path: Path) -> None:
    task = section(dose={**DOSE, "missing": 5, "clip": 9}, sex={**SEX, "unknown": "slot"})
    rows = ["5,f,0", "-3,m,1", ",,1", "1e9,z,0"]
    together = read(tmp_path, "dose,sex,label\n" + "\n".join(rows), task)
    alone = [read(tmp_path, f"dose,sex,label\n{row}\n", task)[0] for row in rows]
    assert together == alone


def test_the_order_of_columns_in_a_file_does_not_matter(tmp_path: Path) -> None:
    task = section(dose=DOSE, sex=SEX)
    expected = [[0, 1, 0], [1, 0, 1]]
    assert read(tmp_path, "dose,sex,label\n5,f,0\n8,m,1\n", task) == expected
    assert read(tmp_path, "label,note,sex,dose\n0,a,f,5\n1,b,m,8\n", task) == expected
    with pytest.raises(DataError, match="no column 'sex'; it has dose, label"):
        read(tmp_path, "dose,label\n5,0\n", task)


@pytest.mark.parametrize(
    ("feature", "says"),
    [
        ([1, 2, 3], r"\[center, scale\] or"),
        ([1, 0], "greater than 0"),
        ([1, float("inf")], "finite"),
        ({**DOSE, "flag": True}, "flag needs missing"),
        ({**DOSE, "kind": "numeric"}, "'number', 'category', 'date', 'ignore'"),
        ({**DOSE, "means": 1}, "Extra inputs"),
        ({"kind": "category", "values": []}, "at least 1 item"),
        ({"kind": "category", "values": ["a", "a"]}, "'a' is there twice"),
        ({"kind": "date", "parts": ["year", "year"]}, "a part is there twice"),
    ],
)
def test_a_feature_that_can_not_be_is_a_sentence(feature: object, says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        section(dose=feature)


def test_the_label_is_no_feature() -> None:
    with pytest.raises(ValidationError, match="'label' is the label"):
        section(label=DOSE)
    assert section(label={"kind": "ignore"}, dose=DOSE)


def test_run_toml_keeps_every_feature_and_its_digest_covers_them(tmp_path: Path) -> None:
    features: dict[str, Any] = {
        "age": [50, 20],
        "dose": {**DOSE, "missing": 5.0, "flag": True, "clip": 4.0},
        "sex": {**SEX, "unknown": "slot"},
        "seen on": {"kind": "date", "parts": ["year", "month"], "format": "%d.%m.%Y"},
        "id": {"kind": "ignore"},
    }
    run = RunConfig.model_validate(
        {"privacy": {"mode": "none"}, "task": {"features": features, "labels": ["no", "yes"]}}
    )
    write(run, tmp_path / "run.toml")
    assert load(RunConfig, [tmp_path / "run.toml"]) == run
    digests = {run.digest}
    for changed in ({"clip": 4.5}, {"flag": False}, {"missing": 6.0}):
        other = {**features, "dose": {**features["dose"], **changed}}
        task = {"features": other, "labels": ["no", "yes"]}
        digests.add(RunConfig.model_validate({"privacy": {"mode": "none"}, "task": task}).digest)
    assert len(digests) == 4
    assert json.loads(run.model_dump_json())["task"]["features"]["age"]["kind"] == "number"


BAD = "dose,sex,label\n" + "5,f,0\n8,m,1\n" * 9 + "five,f,0\n5,f\n"


def skipping(share: float) -> TaskSection:
    return section(dose=DOSE, sex=SEX).model_copy(update={"bad_rows": share})


def test_bad_rows_are_skipped_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(read(tmp_path, BAD, skipping(0.1))) == 18
    assert capsys.readouterr().err == (
        f"warning: {tmp_path / 'mine.csv'}: 2 of 20 rows are skipped (another number of cells than "
        "the header: 1, column 'dose' is not numeric: 1).\n"
    )


def test_more_bad_rows_than_run_toml_allows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"2 of 20 rows can't be used .* more than task.bad_rows = 0.09 allows"
    ):
        read(tmp_path, BAD, skipping(0.09))
    with pytest.raises(DataError, match="row 20 has 2 cells, the header 3"):
        read(tmp_path, BAD, skipping(0))


def test_a_row_is_bad_once_and_no_sentence_has_a_cell_of_it(tmp_path: Path) -> None:
    text = "dose,sex,label\n5,f,0\n777q,zorro,anna was here on Monday and again on Friday, too\n"
    with pytest.raises(DataError, match=r"1 of 2 rows can't be used") as caught:
        read(tmp_path, text, skipping(0.4))
    for cell in ("777", "zorro", "anna"):
        assert cell not in str(caught.value)


def test_all_labels_may_be_bad(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="2 of 2 rows can't be used"):
        read(tmp_path, "dose,sex,label\n5,f,\n5,f,3\n", skipping(0.99))


def test_rows_and_labels_stay_together(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("dose,sex,label\n5,f,1\nx,f,0\n8,m,0\n")
    examples = data.own(path, skipping(0.4))
    assert np.array_equal(examples.y, [1, 0])
    assert examples.x.flatten(1).tolist() == [[0, 1, 0], [1, 0, 1]]


def test_one_row_never_decides_how_others_are_read(tmp_path: Path) -> None:
    """Else a single record could drop many, and ε counts one. Rows may be skipped here."""
    task = section(dose={**DOSE, "scale": 1000}).model_copy(update={"bad_rows": 0.5})
    ninety = "".join(f"{k},{k % 2}\n" for k in range(91))
    pointed = "".join("1.234,0\n" for _ in range(9))
    assert len(read(tmp_path, f"dose,label\n{ninety}{pointed}", task)) == 100
    with pytest.raises(DataError, match="may separate decimals or thousands"):
        read(tmp_path, f'dose,label\n{ninety}{pointed}"2,5",0\n', task)
    with pytest.raises(DataError, match="may separate decimals or thousands"):
        read(tmp_path, f'dose,label\n{ninety}"1,234",0\n', task)
    skipped = read(tmp_path, f'dose,label\n{ninety}2.5,0\n7.5,1\n"2,5",0\n', task)
    assert len(skipped) == 93, "one that is written in another way is skipped, and changes no other"


def test_a_date_format_that_is_none_makes_rows_bad(tmp_path: Path) -> None:
    day = {"kind": "date", "parts": ["month"], "format": "%d.%d.%Y"}
    with pytest.raises(DataError, match="is no date"):
        read(tmp_path, "day,label\n01.02.2024,0\n", section(day=day))


def test_a_label_of_thousands_of_digits_is_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="label"):
        read(tmp_path, f"dose,label\n5,{'9' * 5000}\n", section(dose=DOSE))
