"""Plots: what can be told apart without colour, what is labelled, and the files."""

from matplotlib.figure import Figure

from fedcurv.simulations.reports.pictures import (
    Curve,
    draw,
    draw_targets,
    label_of,
    legend_below,
    name_of_data,
    save,
)


def plot(number: int = 1):
    figure = Figure()
    axes = figure.subplots()
    for index in range(number):
        draw(axes, Curve(f"curve {index}", range(30), [float(index)] * 30), index)
    return figure, axes


def test_forty_curves_differ_in_line_or_marker_and_not_in_colour_alone():
    _, axes = plot(40)
    looks = {(str(line._dash_pattern), line.get_marker()) for line in axes.lines}
    assert len(looks) == 40
    assert len({line.get_linestyle() for line in axes.lines[:5]}) >= 4


def test_markers_of_curves_that_lie_on_each_other_stand_apart():
    _, axes = plot(2)
    (start, every), (other, _) = (line.get_markevery() for line in axes.lines)
    assert start % every != other % every


def test_a_band_is_drawn_between_its_edges():
    axes = Figure().subplots()
    draw(axes, Curve("a", [0, 1], [2.0, 3.0], [1.0, 2.5], [4.0, 3.5]), 0)
    (band,) = axes.collections
    corners = {tuple(corner) for corner in band.get_paths()[0].vertices}
    assert {(0, 1), (0, 4), (1, 2.5), (1, 3.5)} <= corners


def test_targets_are_drawn_where_they_are_in_sight():
    axes = Figure().subplots()
    axes.set_ylim(50, 92)
    draw_targets(axes, [40, 80, 90, 95])
    assert [line.get_ydata()[0] for line in axes.lines] == [80, 90]


def test_a_legend_names_each_curve_once_and_no_target():
    figure = Figure(layout="constrained")
    for axes in figure.subplots(1, 2):
        draw(axes, Curve("a", [0, 1], [0, 1]), 0)
        draw_targets(axes, [0.5])
    legend_below(figure, 2)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a"]


def test_a_strategy_is_labelled_with_the_weights_of_its_terms():
    assert label_of("fedavg", {"_target_": "FedAvg"}) == "fedavg"
    assert label_of("fedprox", {"proximal_mu": 0.01}) == "fedprox, μ = 0.01"
    both = {"strength": 30, "strategy": {"proximal_mu": 1.0}}
    assert label_of("mine", both) == "mine, λ = 30, μ = 1"
    assert label_of("mine", {"strength": {"_target_": "AutoStrength"}}) == "mine, λ = auto"
    assert label_of("gone", None) == "gone"


def test_a_plot_names_the_data_and_not_where_they_lie():
    config = {"num_clients": 3, "partition": {"name": "iid"}, "data": {"name": "digits"}}
    assert name_of_data(config) == "digits, 3 clients, iid"
    config["data"] = {"name": "arrays", "file": "/home/me/tokens.npz"}
    assert name_of_data(config) == "tokens, 3 clients, iid"
    config["data"] = {"name": "function", "function": "wine:data"}
    assert name_of_data(config) == "wine:data, 3 clients, iid"


def test_a_figure_is_written_for_screen_and_print_and_is_the_same_each_time(tmp_path):
    (tmp_path / "again").mkdir()
    for folder in (tmp_path, tmp_path / "again"):
        save(plot()[0], folder, "plot")
    for suffix, start in (("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")):
        written = (tmp_path / f"plot.{suffix}").read_bytes()
        assert written.startswith(start)
        assert written == (tmp_path / "again" / f"plot.{suffix}").read_bytes()
