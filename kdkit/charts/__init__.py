"""Charts: pictures as SVG in one line of text, readable on a light and on a dark page, in print and to a screen reader.

Text and axes take the page's own colour; lines differ in dash and marker too, and cells hold their number, so that colour
never tells anything alone. A page may set `--kd-series-1` to `--kd-series-6` and `--kd-heat` to colours of its own, and
`--kd-paper` to what lies behind a picture. Each kind has its module; `frame` holds the parts they share.
"""

from kdkit.charts.bars import bar_chart, row_chart
from kdkit.charts.distributions import histogram
from kdkit.charts.frame import COLOURS
from kdkit.charts.grid import heat_map
from kdkit.charts.lines import Points, line_chart, told
from kdkit.charts.scatter import Mark, scatter_chart

__all__ = ["COLOURS", "Mark", "Points", "bar_chart", "heat_map", "histogram", "line_chart", "row_chart", "scatter_chart", "told"]
