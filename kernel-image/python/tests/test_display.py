"""What values look like when a cell displays them, through a real kernel."""

from __future__ import annotations

import base64

import pytest

FIGURE = "import matplotlib.pyplot as plt\nplt.plot([1, 2, 3], [3, 4, 5])\nplt.xlabel('t [s]')\n"


@pytest.fixture(scope="module", autouse=True)
def libraries(kernel):
    code = "import numpy as np, pandas as pd, datetime as dt, decimal, uuid, pathlib\nfrom PIL import Image"
    assert kernel.run(code).error is None


def test_a_dataframe_has_text_html_and_data(kernel):
    bundle = kernel.run("    df = pd.DataFrame({'a': [1, 2, 3]})\n    df").bundle
    assert sorted(bundle) == ["e2b/data", "text/html", "text/plain"]
    assert bundle["e2b/data"] == {"a": [1, 2, 3]}


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("[1, None]", [1.0, None]),
        ("[float('inf'), 2.5]", [None, 2.5]),
        ("['a', None]", ["a", None]),
        ("[True, False]", [True, False]),
        ("pd.to_datetime(['2024-01-02 03:04', None])", ["2024-01-02T03:04:00", "NaT"]),
        ("pd.to_datetime(['2024-01-02']).tz_localize('UTC')", ["2024-01-02T00:00:00+00:00"]),
        ("pd.to_timedelta(['1 days 02:00:00', None])", ["P1DT2H0M0S", "NaT"]),
        ("[dt.timedelta(hours=26, microseconds=5)]", ["P1DT2H0M0.000005S"]),
        ("[dt.date(2024, 1, 1), dt.time(1, 2)]", ["2024-01-01", "01:02:00"]),
        ("[decimal.Decimal('1.10'), decimal.Decimal('NaN')]", ["1.10", None]),
        ("pd.Categorical(['x', None, 'x'])", ["x", None, "x"]),
        ("pd.array([1, None], dtype='Int64')", [1, None]),
        ("pd.array(['s', None], dtype='string')", ["s", None]),
        ("pd.period_range('2024-01', periods=2, freq='M')", ["2024-01", "2024-02"]),
        ("pd.interval_range(0, 1)", ["(0, 1]"]),
        ("[b'\\x00\\xff']", ["AP8="]),
        ("[{'k': (1, float('nan'))}, [np.int8(3), np.array([1.5])]]", [{"k": [1, None]}, [3, [1.5]]]),
        ("[2**53, 1]", ["9007199254740992", "1"]),
        ("[2**70]", ["1180591620717411303424"]),
        ("[1 + 2j]", ["(1+2j)"]),
        ("np.array([1.5], dtype='float32')", [1.5]),
        ("[uuid.UUID(int=1), pathlib.PurePosixPath('/p')]", ["00000000-0000-0000-0000-000000000001", "/p"]),
        ("[object] ", ["<class 'object'>"]),
    ],
)
def test_every_kind_of_column_becomes_plain_values(kernel, column, values):
    execution = kernel.run(f"pd.DataFrame({{'c': {column}}})")
    assert execution.bundle["e2b/data"] == {"c": values}
    assert (execution.stderr, execution.error) == ([], None)


def test_column_names_become_distinct_texts(kernel):
    frame = "pd.DataFrame([[1, 2, 3, 4, 5, 6]], columns=pd.Index(['a', 'a', 'a.1', 1, ('x', 'y'), None], dtype=object))"
    assert kernel.run(frame).bundle["e2b/data"] == {
        "a": [1],
        "a.2": [2],
        "a.1": [3],
        "1": [4],
        "('x', 'y')": [5],
        "None": [6],
    }
    levels = "pd.DataFrame([[1, 2]], columns=pd.MultiIndex.from_tuples([('p', 1), ('p', 2)]))"
    assert kernel.run(levels).bundle["e2b/data"] == {"('p', 1)": [1], "('p', 2)": [2]}


def test_rows_beyond_the_limit_are_counted_not_sent(kernel):
    result = kernel.run("pd.DataFrame({'n': np.arange(100_003)})").results[0]
    assert result["data"]["e2b/data"]["n"] == list(range(100_000))
    assert result["metadata"]["e2b/data"] == {"rows": 100_000, "total_rows": 100_003}


def test_the_limits_can_be_set_by_the_user(kernel):
    kernel.run("%config DataFormatter.row_limit = 2")
    assert kernel.run("pd.DataFrame({'n': [1, 2, 3]})").bundle["e2b/data"] == {"n": [1, 2]}
    kernel.run("%config DataFormatter.row_limit = 100_000")


def test_an_empty_dataframe_has_empty_data(kernel):
    assert kernel.run("pd.DataFrame()").bundle["e2b/data"] == {}


def test_series_and_arrays_have_no_data(kernel):
    assert set(kernel.run("pd.Series([1])").bundle) == {"text/plain"}
    assert set(kernel.run("np.arange(3)").bundle) == {"text/plain"}


@pytest.mark.parametrize(("library", "frame"), [("polars", "polars.DataFrame(%s)"), ("pyarrow", "pyarrow.table(%s)")])
def test_tables_of_other_libraries_have_data(kernel, library, frame):
    pytest.importorskip(library)
    table = frame % "{'n': [1, None], 'd': [dt.date(2024, 1, 1), None], 'f': [float('nan'), 1.5]}"
    data = kernel.run(f"import {library}\n{table}").bundle["e2b/data"]
    assert data == {"n": [1, None], "d": ["2024-01-01", None], "f": [None, 1.5]}


def test_objects_may_bring_their_own_data_and_chart(kernel):
    kernel.run(
        "class Own:\n"
        "    def __repr__(self): return 'own'\n"
        "    def _repr_e2b_data_(self): return {'a': [np.float64(1), float('nan')]}\n"
        "    def _repr_e2b_chart_(self): return {'type': 'unknown'}\n"
    )
    assert kernel.run("Own()").bundle == {
        "text/plain": "own",
        "e2b/data": {"a": [1.0, None]},
        "e2b/chart": {"type": "unknown"},
    }


def test_a_formatter_that_fails_fails_in_silence(kernel):
    kernel.run(
        "class Bad:\n"
        "    def __repr__(self): return 'bad'\n"
        "    def _repr_e2b_data_(self): raise RuntimeError('data')\n"
        "    def _repr_e2b_chart_(self): return 7\n"
        "    def _repr_json_(self): print('x' + 1)\n"
    )
    execution = kernel.run("Bad()")
    assert execution.bundle == {"text/plain": "bad"}
    assert (execution.error, execution.stderr) == (None, [])


@pytest.mark.parametrize(
    ("value", "json"),
    [
        ("[1, 'a', None, float('nan')]", [1, "a", None, None]),
        ("{1: {'a': (1, 2)}, None: True}", {"1": {"a": [1, 2]}, "null": True}),
        ("[np.float32(1.5), np.arange(2)]", [1.5, [0, 1]]),
        ("[dt.date(2024, 1, 1)]", ["2024-01-01"]),
        ("[2**60, 1]", [str(2**60), 1]),
        ("[]", []),
        ("{}", {}),
    ],
)
def test_lists_and_dicts_have_json(kernel, value, json):
    result = kernel.run(value).results[0]
    assert result["data"]["application/json"] == json
    assert result["metadata"]["application/json"] == {"expanded": True}


@pytest.mark.parametrize("value", ["(1, 2)", "{1, 2}", "[object()]", "np.arange(2)", "a = []; a.append(a); a", "1"])
def test_other_values_have_no_json(kernel, value):
    assert set(kernel.run(value).bundle) == {"text/plain"}


def test_ipythons_own_json_object_keeps_its_json(kernel):
    bundle = kernel.run("from IPython.display import JSON\nJSON({'a': 1})").bundle
    assert bundle["application/json"] == {"a": 1}


def test_a_raw_display_has_exactly_its_own_keys(kernel):
    assert kernel.run("display({'text/latex': r'$x$'}, raw=True)").bundle == {"text/latex": "$x$"}


def test_a_shown_figure_has_png_text_and_chart(kernel):
    execution = kernel.run("    " + FIGURE.replace("\n", "\n    ") + "plt.show()\n")
    bundle = execution.bundle
    assert sorted(bundle) == ["e2b/chart", "image/png", "text/plain"]
    assert base64.b64decode(bundle["image/png"]).startswith(b"\x89PNG")
    chart = bundle["e2b/chart"]
    assert (chart["type"], chart["x_unit"], chart["title"]) == ("line", "s", None)
    assert chart["elements"] == [{"label": "Line 0", "points": [[1.0, 3.0], [2.0, 4.0], [3.0, 5.0]]}]
    assert execution.stderr == []


def test_a_block_with_show_and_a_last_expression_has_two_results(kernel):
    results = kernel.run("    " + FIGURE.replace("\n", "\n    ") + "plt.show()\n    x = 1\n    x\n").results
    assert ["image/png" in result["data"] for result in results] == [True, False]
    assert results[1]["data"] == {"text/plain": "1"}


def test_a_figure_not_shown_is_displayed_at_the_end_of_its_cell(kernel):
    types = [m["header"]["msg_type"] for m in kernel.run(FIGURE + "1").messages]
    assert [t for t in types if t in ("execute_result", "display_data")] == ["execute_result", "display_data"]


@pytest.mark.parametrize(
    "draw",
    [
        "plt.subplots()",
        "plt.subplots(2, 2)",
        "f, a = plt.subplots(); a.plot([1, 2]); a.twinx().plot([2, 1])",
        "plt.subplot(projection='3d').plot_surface(*np.meshgrid(range(3), range(3)), np.ones((3, 3)))",
        "plt.subplot(projection='polar').bar([0, 1], [1, 2])",
        "plt.contourf(np.ones((3, 3)) * [1, 2, 3]); plt.colorbar()",
        "plt.title('\N{GRINNING FACE} \u65e5'); plt.plot([1, 2], label='é'); plt.legend()",
        "plt.loglog([1, 10, -1], [1, float('inf'), 0])",
        "plt.scatter(range(10_000), range(10_000))",
        "plt.hist(range(1000), bins=100)",
        "plt.boxplot([[1, 2, 3, 50], []], patch_artist=True)",
        "plt.errorbar([1, 2], [1, 2], yerr=[1, 1]); plt.fill_between([1, 2], [1, 2])",
        "plt.pie([1, 2]); plt.figtext(0, 0, 'x')",
        "plt.plot([1, 2], label=object()); plt.xticks([1, 2])",
        "plt.plot(range(300_000))",
        "plt.imshow([[1, 2], [3, 4]]); plt.colorbar()",
        "plt.plot(pd.to_datetime(['2024-01-01', None]), [float('nan'), 1])",
        "plt.scatter(np.ma.masked_array([1, 2], [True, False]), [1, 2])",
    ],
)
def test_a_figure_without_readable_data_still_has_its_image(kernel, draw):
    execution = kernel.run(f"import matplotlib.pyplot as plt\n{draw}\nplt.show()")
    assert "image/png" in execution.bundle and isinstance(execution.bundle["e2b/chart"], dict)
    assert (execution.error, execution.stderr) == (None, [])
    chart = execution.bundle["e2b/chart"]
    assert chart == {} or {"type", "title", "elements"} <= set(chart)


def test_the_missing_optional_font_is_not_the_users_concern(kernel):
    execution = kernel.run(
        "import matplotlib; print(matplotlib.rcParams['font.family'])\n" + FIGURE + "plt.title('plain')\nplt.show()"
    )
    assert execution.stdout == ["['sans-serif', 'Noto Sans CJK JP']\n"]
    assert execution.stderr == []


@pytest.mark.parametrize(
    "display", ["image.show()", "image", "image.save('test.png')", "image.save('test.jpg', quality=80)"]
)
def test_an_image_is_displayed_exactly_once(kernel, tmp_path, display):
    bundle = kernel.run(f"%cd -q {tmp_path}\nimage = Image.new('RGB', (4, 4), 'red')\n{display}").bundle
    assert sorted(bundle) == ["image/jpeg", "image/png", "text/plain"]


def test_an_image_saved_to_a_path_object_or_a_file_is_not_displayed(kernel, tmp_path):
    kernel.run("import io")
    code = f"image.save(pathlib.Path({str(tmp_path)!r}) / 'a.png'); image.save(io.BytesIO(), 'PNG')"
    assert kernel.run(code).results == []
    assert (tmp_path / "a.png").exists()


def test_an_image_that_can_not_be_saved_is_not_displayed(kernel):
    execution = kernel.run("image.save('x.unknown-format')")
    assert (execution.results, execution.error[0]) == ([], "ValueError")


@pytest.mark.parametrize("method", ["_repr_html_", "_repr_png_", "_repr_mimebundle_", "_ipython_display_"])
def test_a_method_that_raises_is_told_on_stderr_and_the_rest_is_shown(kernel, method):
    kernel.run(
        "class Broken:\n"
        "    def __repr__(self): return 'shown'\n"
        f"    def {method}(self, **_): raise RuntimeError('from the method')\n"
    )
    execution = kernel.run("Broken()")
    assert (execution.error, execution.reply["status"], execution.bundle) == (None, "ok", {"text/plain": "shown"})
    assert "RuntimeError: from the method" in "".join(execution.stderr)


def test_a_value_without_any_text_is_shown_by_its_type(kernel):
    kernel.run("class Mute:\n    def __repr__(self): raise RuntimeError('no repr')")
    execution = kernel.run("Mute()")
    assert (execution.error, execution.reply["status"]) == (None, "ok")
    assert execution.text.startswith("<__main__.Mute object at 0x")
    assert "no repr" in "".join(execution.stderr)
    assert kernel.run("[Mute()]").error is None


def test_an_error_of_the_cell_after_a_broken_display_is_still_an_error(kernel):
    kernel.run("class Mute:\n    def __repr__(self): raise RuntimeError('no repr')")
    assert kernel.run("display(Mute()); 1/0").error == ("ZeroDivisionError", "division by zero")


@pytest.mark.parametrize(
    "result",
    ["7", "b'x'", "('a', 7)", "({'text/html': 7}, 7)", "{7: object()}", "{'text/html': '\\ud800'}", "[]", "object()"],
)
@pytest.mark.parametrize("method", ["_repr_html_", "_repr_png_", "_repr_json_", "_repr_mimebundle_", "_repr_e2b_data_"])
def test_a_method_that_answers_with_nonsense_does_not_fail_the_cell(kernel, method, result):
    kernel.run(f"class Odd:\n    def __repr__(self): return 'odd'\n    def {method}(self, **_): return {result}")
    execution = kernel.run("Odd(); display(Odd()); Odd()")
    assert (execution.error, execution.reply["status"]) == (None, "ok")


def test_a_method_that_prints_prints(kernel):
    kernel.run("class Loud:\n    def __repr__(self):\n        print('said')\n        return 'loud'")
    execution = kernel.run("Loud()")
    assert (execution.stdout, execution.text) == (["said\n"], "loud")
