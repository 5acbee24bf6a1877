"""The page of a graph: it carries all it needs, shows all there is, and runs no name as code."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys
import types
from collections import OrderedDict
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import paramgraph as pg
from paramgraph.report.graph_page import Layout, graph_page, lay_out, write_graph_page
from paramgraph.report.graph_page.across import place_across
from paramgraph.report.graph_page.data import page_data
from paramgraph.report.graph_page.layers import make_rows
from paramgraph.report.graph_page.layout import spaced
from paramgraph.report.inspect_text import inspect_data, inspect_text
from paramgraph.report.symmetry_words import SymmetryWords
from paramgraph.structure import AxisGroup, EdgeBlock, EdgeKind, NeuronGroup, NeuronKind

HOSTILE = (
    "</script><script>document['title']='taken'</script>",
    "<img src=x onerror=\"document['title']='taken'\">",
    "{{script}}",
    "\u2028'\"&amp;`${1}",
)


class _Block(nn.Module):
    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        same = inside == outside
        self.short: nn.Module = nn.Identity() if same else nn.Conv2d(inside, outside, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (y + self.short(x)).relu()


class _Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.layers = nn.Sequential(_Block(4, 4), _Block(4, 4), _Block(4, 8), _Block(8, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.stem(x).relu()).mean((2, 3)))


class _Mixture(nn.Module):
    """Experts that are modules of their own, added with the weights of a router."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Linear(3, 8)
        self.router = nn.Linear(8, 4)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 8)) for _ in range(4)
        )
        self.outside = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inside(x).tanh()
        weights = self.router(x).softmax(-1)
        mixed = sum(weights[..., i : i + 1] * e(x) for i, e in enumerate(self.experts))
        return self.outside(x + mixed)


def _encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    stack = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    return nn.Sequential(nn.Linear(3, 8), stack, nn.Linear(8, 2))


NETWORKS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "residual": (_Residual, (2, 1, 8, 8)),
    "encoder": (_encoder, (2, 5, 3)),
    "mixture": (_Mixture, (4, 3)),
}


@pytest.fixture(scope="module", params=list(NETWORKS))
def graph(request: pytest.FixtureRequest) -> pg.ParamGraph:
    """The graph of each network."""
    return _graph(request.param)


def _graph(name: str) -> pg.ParamGraph:
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    return pg.capture(make().eval(), torch.randn(shape))


def _hostile() -> tuple[nn.Module, Tensor]:
    layers = [nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 2)]
    kind = type("<b onclick=1>&{{data}}", (nn.Sequential,), {})
    return kind(OrderedDict(zip(HOSTILE, layers, strict=True))), torch.randn(4, 3)


# One page that loads nothing and runs nothing but itself


def test_the_page_loads_nothing(graph: pg.ParamGraph) -> None:
    page = graph_page(graph)
    for sign in (r"https?://", r"\bsrc\s*=", r"@import", r"\burl\(", r"<link", r"\bfetch\(", "ws:"):
        assert not re.search(sign, page), sign
    assert "default-src 'none'" in page


def test_only_the_script_and_style_of_the_page_are_allowed(graph: pg.ParamGraph) -> None:
    page = graph_page(graph)
    for tag, kind in (("script", "script"), ("style", "style")):
        text = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        assert len(text) == 1
        digest = base64.b64encode(hashlib.sha256(text[0].encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in page
    assert "unsafe" not in page


def test_the_same_network_gives_the_same_page() -> None:
    for name in NETWORKS:
        assert graph_page(_graph(name)) == graph_page(_graph(name))


class _Elements(HTMLParser):
    """Counts elements, and keeps the text of the title and of the data."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.handlers: list[str] = []
        self.text: dict[str, str] = {}
        self._place = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        self._place = dict(attrs).get("id") or tag

    def handle_data(self, data: str) -> None:
        self.text[self._place] = self.text.get(self._place, "") + data


def _elements(page: str) -> _Elements:
    parser = _Elements()
    parser.feed(page)
    parser.close()
    return parser


def test_names_are_never_html() -> None:
    network, inputs = _hostile()
    graph = pg.capture(network, inputs)
    graph = replace(graph, repairs=HOSTILE, unknown_operations=HOSTILE)
    usual = _elements(graph_page(pg.capture(nn.Linear(3, 2), torch.randn(4, 3))))
    found = _elements(graph_page(graph))
    assert found.tags == usual.tags
    assert found.handlers == []
    assert found.text["title"].startswith(graph.name)
    # Nothing is lost either: the script reads back every name as it is.
    assert json.loads(found.text["data"]) == json.loads(json.dumps(page_data(graph)))
    names = json.dumps(page_data(graph), ensure_ascii=False)
    for name in HOSTILE:
        assert json.dumps(name, ensure_ascii=False)[1:-1] in names


def test_a_page_with_names_as_html_would_be_noticed() -> None:
    page = graph_page(pg.capture(nn.Linear(3, 2), torch.randn(4, 3)))
    broken = page.replace('<script type="application/json"', f'{HOSTILE[1]}<script type="a"')
    assert "img" in _elements(broken).tags
    assert _elements(broken).handlers == ["onerror"]


# Everything is there


def test_every_group_and_block_is_shown(graph: pg.ParamGraph) -> None:
    data = json.loads(_elements(graph_page(graph)).text["data"])
    assert [row["name"] for row in data["g"]] == [group.name for group in graph.neuron_groups]
    assert [row["name"] for row in data["b"]] == [block.name for block in graph.blocks]
    assert [row["ends"] for row in data["b"]] == [[b.sender, b.receiver] for b in graph.blocks]
    assert [row["name"] for row in data["a"]] == [row.name for row in graph.axis_groups]
    assert [row["name"] for row in data["p"]] == [row.name for row in graph.parameters]
    for block, shown in zip(graph.blocks, data["b"], strict=True):
        facts = dict(shown["facts"])
        assert facts["shape"][0].startswith(" x ".join(map(str, block.shape)))
        assert ("constant" in facts["values"][0]) == (block.view is None)
    for row in data["a"]:
        assert row["free"] or row["reason"]


def test_links_lead_to_rows_that_exist(graph: pg.ParamGraph) -> None:
    data = json.loads(_elements(graph_page(graph)).text["data"])

    def links(value: Any) -> Any:
        if isinstance(value, list) and len(value) > 1 and isinstance(value[1], int):
            yield value
        elif isinstance(value, list):
            for item in value:
                yield from links(item)

    found = [link for table in "gbasp" for row in data[table] for link in links(row["facts"])]
    assert len(found) > len(graph.blocks)
    assert {link[0] for link in found} == set("gbap" + ("s" if graph.scale_groups else ""))
    assert graph.scale_groups
    for link in found:
        assert 0 <= link[1] < len(data[link[0]])


def test_totals_and_the_verification_are_shown() -> None:
    network, inputs = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)), torch.randn(4, 3)
    graph = pg.capture(network, inputs)
    checked = pg.verify(network, graph, inputs)
    totals = {row[0]: row[1:] for row in page_data(graph, checked)["totals"]}
    assert totals["parameters"] == ["32", ""]
    assert totals["neurons"] == ["10", ""]
    assert totals["edges"] == ["25", ""]
    assert totals["permutations"] == ["10^2.1 (ln 4.8)", ""]  # 5!
    assert totals["verification"][1] == "good"
    failed = replace(checked, max_error=1.0)
    totals = {row[0]: row[1:] for row in page_data(graph, failed)["totals"]}
    assert totals["verification"] == ["FAILED, error 1.0e+00", "bad"]
    assert {row[0]: row[1] for row in page_data(graph)["totals"]}["verification"] == "not run"


# The drawing


def assert_drawable(graph: pg.ParamGraph, layout: Layout) -> None:
    """No boxes overlap, edges lead down, and lines pass between boxes."""
    boxes = layout.boxes
    by_row: dict[int, list[int]] = {}
    for number, box in enumerate(boxes):
        by_row.setdefault(box.row, []).append(number)
    for row, numbers in by_row.items():
        line = sorted(numbers, key=lambda number: boxes[number].x)
        for left, right in pairwise(line):
            room = boxes[right].x - boxes[left].x
            assert room > (boxes[left].width + boxes[right].width) / 2 + 5, "boxes overlap"
        for other, others in by_row.items():
            if other > row:
                room = boxes[others[0]].y - boxes[numbers[0]].y
                assert room > boxes[others[0]].height + 20, "rows out of order"
    for block, route in zip(graph.blocks, layout.routes, strict=True):
        sender, receiver = boxes[block.sender], boxes[block.receiver]
        assert sender.row < receiver.row, "an edge leads up"
        assert route[0][1] == sender.y + sender.height / 2
        assert route[-1][1] == receiver.y - receiver.height / 2
        assert abs(route[0][0] - sender.x) <= sender.width / 2
        assert abs(route[-1][0] - receiver.x) <= receiver.width / 2
        for (x0, y0), (x1, y1) in pairwise(route):
            assert y0 < y1
            for box in boxes:
                top, bottom = box.y - box.height / 2, box.y + box.height / 2
                if y1 > top and y0 < bottom:
                    assert x0 == x1, "a line bends beside a box"
                    assert abs(x0 - box.x) > box.width / 2, "a line runs through a box"


def test_boxes_and_lines_keep_apart(graph: pg.ParamGraph) -> None:
    layout = lay_out(graph)
    assert_drawable(graph, layout)
    for group, box in zip(graph.neuron_groups, layout.boxes, strict=True):
        if group.kind is not NeuronKind.FIXED:
            assert box.row == group.depth


def test_a_bad_drawing_would_be_noticed() -> None:
    graph = _graph("residual")
    layout = lay_out(graph)
    boxes = list(layout.boxes)
    wide = tuple(replace(box, width=2000.0) for box in boxes)
    with pytest.raises(AssertionError, match=r"overlap|through"):
        assert_drawable(graph, replace(layout, boxes=wide))
    with pytest.raises(AssertionError, match="rows out of order"):
        assert_drawable(graph, replace(layout, boxes=(replace(boxes[0], row=99), *boxes[1:])))


@st.composite
def _random_graphs(draw: st.DrawFn) -> pg.ParamGraph:
    """Single neurons at random depths, with skips of any length between them."""
    number = draw(st.integers(1, 14))
    pairs = [(i, j) for j in range(number) for i in range(j)]
    edges = draw(st.lists(st.sampled_from(pairs), max_size=30)) if pairs else []
    depth = [0] * number
    for i, j in sorted(edges, key=lambda edge: edge[1]):
        depth[j] = max(depth[j], depth[i] + 1)
    kinds = st.sampled_from([NeuronKind.HIDDEN, NeuronKind.FIXED])
    groups = tuple(
        NeuronGroup("n" * (1 + 9 * i % 40) + f".{i % 3}", 1, draw(kinds), depth=depth[i])
        for i in range(number)
    )
    edge_kinds = st.sampled_from([EdgeKind.SKIP, EdgeKind.FLOW])
    blocks = tuple(EdgeBlock(f"{e}", draw(edge_kinds), *e, 1, 1, 1) for e in edges)
    return pg.ParamGraph("random", groups, blocks, (), (), ())


@settings(max_examples=60, deadline=None)
@given(_random_graphs())
def test_any_graph_can_be_drawn(graph: pg.ParamGraph) -> None:
    assert_drawable(graph, lay_out(graph))


@settings(max_examples=60, deadline=None)
@given(_random_graphs())
def test_long_lines_that_no_long_line_crosses_are_straight(graph: pg.ParamGraph) -> None:
    rows = make_rows(graph)
    x = place_across(rows, [80.0] * rows.num_groups + [0.0] * (len(rows.row) - rows.num_groups))
    pairs = {pair for path in rows.paths for pair in pairwise(path[1:-1])}
    for u, v in pairs:
        crossing = any(
            rows.row[a] == rows.row[u]
            and (rows.place[a] - rows.place[u]) * (rows.place[b] - rows.place[v]) < 0
            for a, b in pairs
        )
        assert crossing or x[u] == pytest.approx(x[v])


def test_a_graph_without_groups_has_a_page() -> None:
    assert graph_page(pg.ParamGraph("empty", (), (), (), (), ())).startswith("<!doctype html>")


@given(st.lists(st.tuples(st.floats(-99, 99), st.floats(0.5, 9)), min_size=1, max_size=9))
def test_spaced_places_keep_order_and_gap(wanted: list[tuple[float, float]]) -> None:
    places = spaced([goal for goal, _ in wanted], [pull for _, pull in wanted], 4.0)
    for left, right in pairwise(places):
        assert right - left >= 4.0 - 1e-9
    assert min(places) >= min(goal for goal, _ in wanted) - 4.0 * len(wanted)


def test_a_long_skip_is_one_line_and_bands_name_modules() -> None:
    graph = _graph("residual")
    layout = lay_out(graph)
    bands = [band.name for band in layout.bands]
    assert bands == [f"layers.{i}" for i in range(4)]
    for first, second in pairwise(layout.bands):
        assert first.bottom <= second.top
    assert "bn2" in {box.label for box in layout.boxes}  # the band tells the rest
    for block, route in zip(graph.blocks, layout.routes, strict=True):
        if block.kind is EdgeKind.SKIP:
            assert len(route) <= 4, "a skip bends at its ends only"


# Words


def test_symmetries_are_told_in_words() -> None:
    graph = _graph("encoder")
    said = [SymmetryWords(graph).factors(group.axes) for group in graph.neuron_groups]
    assert "2 heads, permuted freely, and inside each head 4 neurons by themselves" in said
    assert "8 neurons, permuted freely" in said
    assert any(text.startswith("2 neurons in a fixed order (network output") for text in said)
    channels = _graph("residual")
    said = [SymmetryWords(channels).factors(group.axes) for group in channels.neuron_groups]
    assert "4 channels, permuted freely" in said


def test_dependent_groups_name_what_they_depend_on() -> None:
    graph = _graph("encoder")
    outer = AxisGroup("outer", 2, free=True)
    inner = AxisGroup("inner", 3, free=True, given=("outer",))
    words = SymmetryWords(replace(graph, axis_groups=(*graph.axis_groups, outer, inner)))
    assert words.factors(("outer", "inner", 5)) == (
        "2 groups, permuted freely, and inside each group 3 neurons by themselves, "
        "and 5 in a fixed order"
    )
    assert words.short(("outer", "inner", 5)) == "outer x inner x (5)"


def test_the_text_names_frozen_axes_and_the_symmetries_of_blocks() -> None:
    graph = _graph("mixture")
    text = inspect_text(replace(graph, repairs=("axis a frozen",), unknown_operations=("aten.x",)))
    assert "repairs: axis a frozen" in text
    assert "operations without a rule: aten.x" in text
    for row in graph.axis_groups:
        assert re.search(
            rf"^{re.escape(row.name)} +{row.size} +{'yes' if row.free else 'no'} ", text, re.M
        )
        assert row.free or row.reason in text  # type: ignore[operator]
    blocks = {row["name"]: row for row in inspect_data(graph)["blocks"]}
    assert blocks["outside.weight"]["symmetry"] == "[outside] x inside"
    assert blocks["outside.weight"]["symmetry"] in text


# The command


def test_inspect_writes_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("jsonargparse")
    from paramgraph.cli import main

    module: Any = types.ModuleType("user_residual")
    module.network = _Residual().eval()
    monkeypatch.setitem(sys.modules, "user_residual", module)
    page = tmp_path / "graph.html"
    words = ["inspect", "user_residual:network", "--input-shape", "2x1x8x8", "--html", str(page)]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["html"] == str(page)
    assert len(found["blocks"]) == len(page_data(_graph("residual"))["b"])
    data = json.loads(_elements(page.read_text()).text["data"])
    assert data["title"] == "_Residual"
    assert dict(row[:2] for row in data["totals"])["verification"].startswith("passed")
    assert main(words) == 0
    assert f"Written to {page}" in capsys.readouterr().out
    assert main([*words[:-1], str(tmp_path / "none" / "graph.html")]) == 2
    assert "folder does not exist" in capsys.readouterr().err


def test_a_file_of_weights_alone_has_no_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("jsonargparse")
    from paramgraph.cli import main

    torch.save(nn.Linear(3, 2).state_dict(), tmp_path / "weights.pt")
    words = ["inspect", str(tmp_path / "weights.pt"), "--html", str(tmp_path / "graph.html")]
    assert main(words) == 2
    assert "give --factory" in capsys.readouterr().err
    assert not (tmp_path / "graph.html").exists()


# The script


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_the_script_is_valid(tmp_path: Path) -> None:
    script = re.findall(r"<script>(.*?)</script>", graph_page(_graph("mixture")), re.DOTALL)[0]
    (tmp_path / "page.js").write_text(script)
    subprocess.run(["node", "--check", str(tmp_path / "page.js")], check=True)


def test_the_script_makes_no_html_of_text() -> None:
    folder = files("paramgraph.report.graph_page")
    for name in ("draw.js", "panel.js", "events.js"):
        source = (folder / name).read_text()
        for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
            assert way not in source


def _browsed(page: str, folder: Path, actions: str = "") -> str:
    """What a browser makes of a page; ``actions`` run on it, with the policy taken out."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium is installed")
    if actions:
        page = re.sub(r'<meta http-equiv="Content-Security-Policy".*?>', "", page)
        page = page.replace("</body>", f"<script>{actions}</script></body>")
    (folder / "page.html").write_text(page)
    words = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1280,800", "--dump-dom"]
    address = (folder / "page.html").as_uri()
    result = subprocess.run(
        [browser, *words, f"--user-data-dir={folder / 'profile'}", address],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return result.stdout


@pytest.mark.slow
def test_a_browser_shows_hostile_names_as_text(tmp_path: Path) -> None:
    network, inputs = _hostile()
    graph = pg.capture(network, inputs)
    shown = _elements(_browsed(graph_page(graph), tmp_path))
    assert shown.text["title"].startswith(graph.name)  # no name has taken it over
    assert "img" not in shown.tags
    assert str(graph.num_parameters) in shown.text["dd"]
    actions = "for (const t of 'gbasp') data[t].forEach((_, i) => choose(t, i)); openTab('p');"
    shown = _elements(_browsed(graph_page(graph), tmp_path, actions))
    assert shown.text["title"].startswith(graph.name)
    assert "img" not in shown.tags
    assert shown.handlers == []


@pytest.mark.slow
def test_a_script_that_is_not_ours_does_not_run(tmp_path: Path) -> None:
    page = graph_page(_graph("residual"))
    added = page.replace("</body>", "<script>document.title = 'taken'</script></body>")
    assert _elements(_browsed(added, tmp_path)).text["title"].startswith("_Residual")


@pytest.mark.slow
def test_search_click_and_sort(tmp_path: Path) -> None:
    graph = _graph("residual")
    actions = """
    const told = {};
    const press = (node, key) => node.dispatchEvent(
      new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
    press(document.body, "/");
    told.focus = document.activeElement.id;
    search.value = "layers.1 BN2"; search.dispatchEvent(new Event("input"));
    told.found = results.length; told.expanded = search.getAttribute("aria-expanded");
    press(search, "Enter");
    told.chosen = nameOf(...chosen); told.hash = location.hash; told.closed = found.hidden;
    const at = (g) => [(data.g[g].box[0] - eye.x) * eye.zoom + view.clientWidth / 2,
      (data.g[g].box[1] - eye.y) * eye.zoom + view.clientHeight / 2];
    fit(true);
    told.hits = data.g.map((_, i) => String(hit(...at(i))));
    const box = canvas.getBoundingClientRect(), [x, y] = at(3);
    for (const name of ["pointermove", "pointerdown", "pointerup"]) {
      canvas.setPointerCapture = () => {};
      canvas.dispatchEvent(new PointerEvent(name, { pointerId: 1, clientX: x + box.left,
        clientY: y + box.top }));
    }
    told.clicked = String(chosen); told.tip = tip.textContent;
    told.lines = data.b.filter((b, i) => { const r = b.route, n = r.length;
      const X = (r[n - 2] - eye.x) * eye.zoom + view.clientWidth / 2;
      const Y = (r[n - 1] - 2 - eye.y) * eye.zoom + view.clientHeight / 2;
      return String(hit(X, Y)).startsWith("b"); }).length;
    press(document.body, "Escape");
    told.released = chosen === null;
    openTab("a");
    const rows = () => [...content.querySelectorAll("tbody tr")];
    const sizes = () => rows().map((row) => +row.children[1].textContent);
    content.querySelectorAll("th button")[1].click(); told.up = sizes();
    content.querySelectorAll("th button")[1].click(); told.down = sizes();
    content.querySelector("tbody tr").dispatchEvent(new MouseEvent("mouseenter"));
    told.marked = [...marked.g].length;
    document.documentElement.dataset.told = JSON.stringify(told);
    """
    page = _browsed(graph_page(graph), tmp_path, actions)
    found = re.search(r'data-told="(.*?)"', page)
    assert found, page[-2000:]
    told = json.loads(found.group(1).replace("&quot;", '"').replace("&gt;", ">"))
    assert told["focus"] == "search"
    assert told["expanded"] == "true"
    assert told["found"] >= 2
    assert told["chosen"] == "layers.1.bn2"
    assert re.fullmatch(r"#g\d+", told["hash"])
    assert told["closed"]
    assert told["hits"] == [f"g,{i}" for i in range(len(graph.neuron_groups))]
    assert told["clicked"] == "g,3"
    assert told["tip"].startswith(graph.neuron_groups[3].name)
    assert told["lines"] == len(graph.blocks)
    assert told["released"]
    sizes = [row.size for row in graph.axis_groups]
    assert told["up"] == sorted(sizes)
    assert told["down"] == sorted(sizes, reverse=True)
    assert told["marked"] >= 1


def test_write_graph_page_replaces_the_file(tmp_path: Path) -> None:
    graph = _graph("mixture")
    write_graph_page(tmp_path / "graph.html", graph)
    write_graph_page(tmp_path / "graph.html", graph)
    assert (tmp_path / "graph.html").read_text() == graph_page(graph)
    assert [path.name for path in tmp_path.iterdir()] == ["graph.html"]
