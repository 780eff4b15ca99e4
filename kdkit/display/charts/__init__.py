"""Charts: SVG in one line of text, readable on a light and on a dark page, in print and with a screen reader.

Text and axes take the page's text colour. Lines also differ in dash and marker, and cells show their number, so that nothing
depends on colour alone. A page may set its own colours: `--kd-series-1` to `--kd-series-6`, `--kd-heat`, and `--kd-paper` for
the background of a chart. Each kind of chart has its module; `axes` holds the parts they share.
"""

from kdkit.display.charts.axes import COLOURS
from kdkit.display.charts.bar import bar_chart, row_chart
from kdkit.display.charts.heat_map import heat_map
from kdkit.display.charts.histogram import histogram
from kdkit.display.charts.line import Points, describe_lines, line_chart
from kdkit.display.charts.scatter import Mark, scatter_chart

__all__ = ["COLOURS", "Mark", "Points", "bar_chart", "describe_lines", "heat_map", "histogram", "line_chart", "row_chart", "scatter_chart"]
