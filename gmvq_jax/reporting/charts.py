"""Charts, as SVG: the only file that knows Matplotlib."""

from collections.abc import Mapping
from collections.abc import Sequence
import io
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
import numpy as np
from numpy.typing import ArrayLike

from gmvq_jax.reporting import pictures

_SIZE = (4.6, 2.7)  # Inches.
_POINTS = 4096  # Drawn one by one.
# From version 3.11 on Matplotlib has a type for the keys.
_STYLE: dict[Any, Any] = {
    'axes.axisbelow': True,
    'axes.edgecolor': '#888888',
    'axes.grid': True,
    'axes.prop_cycle': (
        # Okabe and Ito's colours, told apart by the colour-blind too.
        "cycler('color', ['0072B2', 'D55E00', '009E73', 'CC79A7', 'E69F00'])"
    ),
    'axes.spines.right': False,
    'axes.spines.top': False,
    'axes.titlelocation': 'left',
    'axes.titlesize': 10,
    'font.family': 'sans-serif',
    'font.size': 9,
    'grid.color': '#e6e6e6',
    'legend.frameon': False,
    'lines.linewidth': 1.4,
    # Letters stay letters: they can be searched, and files are small.
    'svg.fonttype': 'none',
    # The same chart is the same file.
    'svg.hashsalt': 'gmvq_jax',
}

Curves = Mapping[str, tuple[list[float], list[float]]]


def curves(title: str, series: Curves, *, log: bool = False) -> str:
  """Draws values against steps.

  Args:
    title: of the chart.
    series: by name, steps and values; those of few points are marked.
    log: whether values are on a logarithmic axis.
  """
  with rc_context(_STYLE):
    figure, axes = _axes(title, 'step')
    for name, (steps, values) in series.items():
      marker = 'o' if len(steps) < 30 else None
      axes.plot(steps, values, label=name, marker=marker, markersize=3)
    if log and all(min(v, default=0) > 0 for _, v in series.values()):
      axes.set_yscale('log')
    if len(series) > 1:
      axes.legend()
    return _svg(figure)


def usage(
    counts: np.ndarray, *, title: str = 'How often each code is used'
) -> str:
  """Draws the share of positions of each code, the most frequent first.

  Args:
    counts: `[C]`, how often each code occurs.
    title: of the chart.
  """
  shares = np.sort(counts)[::-1] / counts.sum()
  with rc_context(_STYLE):
    figure, axes = _axes(title, 'codes, by rank')
    ranks = np.unique(np.linspace(0, len(shares) - 1, _POINTS).astype(int))
    axes.fill_between(ranks, shares[ranks], step='mid', alpha=0.8)
    even = 1 / len(shares)
    axes.axhline(even, color='#666666', linewidth=1, linestyle='--')
    axes.text(len(shares), even, 'all alike ', ha='right', va='bottom')
    axes.set_ylabel('share of positions')
    axes.set_xlim(0, len(shares))
    axes.set_ylim(0, None)
    return _svg(figure)


def codebook_map(codebook: np.ndarray, counts: np.ndarray) -> str:
  """Draws codewords in the plane of their two principal components.

  Args:
    codebook: `[C, L]`, L at least 2.
    counts: `[C]`, how often each code occurs: the area of its dot; a cross
      where it does not.
  """
  along, shares = pictures.principal(codebook, 2)
  used = counts > 0
  size = 4 + 40 * counts / max(counts.max(), 1)
  colours = pictures.code_colours(codebook) / 255
  # So many dots are smaller as pixels.
  drawn = dict(rasterized=len(codebook) > _POINTS)
  with rc_context(_STYLE):
    figure, axes = _axes('The codebook', f'first component ({shares[0]:.0%})')
    axes.set_ylabel(f'second component ({shares[1]:.0%})')
    axes.scatter(
        *along[used].T,
        s=size[used],
        c=colours[used],
        linewidths=0,
        alpha=0.85,
        **drawn,
    )
    axes.scatter(
        *along[~used].T,
        s=12,
        c='#999999',
        marker='x',
        linewidths=0.8,
        **drawn,
    )
    return _svg(figure)


def points(
    xlabel: str, ylabel: str, named: Mapping[str, tuple[float, float]]
) -> str:
  """Draws named points, x and y."""
  with rc_context(_STYLE):
    figure, axes = _axes('', xlabel)
    figure.set_size_inches(7.5, 4.8)
    axes.set_ylabel(ylabel)
    for index, (name, (x, y)) in enumerate(named.items()):
      axes.scatter(x, y, s=16, color=f'C{index % 5}')
      axes.annotate(
          name, (x, y), xytext=(4, 3), textcoords='offset points', fontsize=8
      )
    return _svg(figure)


def boxes(
    xlabel: str, panels: Mapping[str, Mapping[str, Sequence[float]]]
) -> str:
  """Draws box plots side by side, and on them each value.

  Args:
    xlabel: of all panels.
    panels: by what is on the vertical axis, values by what is on the other.
  """
  with rc_context(_STYLE):
    width, height = _SIZE
    figure = Figure((width * len(panels), height), layout='constrained')
    for axes, (ylabel, groups) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0],
        panels.items(),
        strict=True,
    ):
      axes.boxplot(
          list(groups.values()),
          tick_labels=list(groups),
          showfliers=False,
          widths=0.5,
          medianprops={'color': 'C1'},
      )
      for place, values in enumerate(groups.values(), start=1):
        axes.plot([place] * len(values), values, 'o', markersize=3, color='C0')
      axes.set_xlabel(xlabel)
      axes.set_ylabel(ylabel)
      axes.grid(visible=False, axis='x')
    return _svg(figure)


def rows(
    panels: Mapping[str, Mapping[str, Sequence[float]]],
    *,
    highlighted: str,
    linear_to: float | None = None,
) -> str:
  """Draws values in named rows, and a line down from the mean of one of them.

  Args:
    panels: side by side; by what is on the horizontal axis, values by name, of
      the same names, the first at the top.
    highlighted: the name of that one, if it is there.
    linear_to: from where on, on either side of 0, the axis is logarithmic.
  """
  names = list(next(iter(panels.values())))
  with rc_context(_STYLE):
    size = (2.6 + 3.9 * len(panels), 0.9 + 0.26 * len(names))
    figure = Figure(size, layout='constrained')
    subplots = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (xlabel, named) in zip(subplots, panels.items(), strict=True):
      for row, (name, values) in enumerate(named.items()):
        colour = 'C1' if name == highlighted else 'C0'
        axes.plot(values, [row] * len(values), 'o', markersize=4, color=colour)
      if highlighted in named:
        axes.axvline(np.mean(named[highlighted]), color='C1', linewidth=1)
      axes.set_xlabel(xlabel)
      if linear_to is None:
        axes.locator_params(axis='x', nbins=6)
      else:
        axes.set_xscale('symlog', linthresh=linear_to)
        axes.xaxis.set_major_formatter('{x:+g}')
      axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    return _svg(figure)


def panels(
    xlabel: str,
    ylabel: str,
    lines: Mapping[str, Curves],
    dots: Mapping[str, tuple[ArrayLike, ArrayLike]] | None = None,
    *,
    log: bool = False,
) -> str:
  """Draws lines side by side on one scale, and dots under them.

  Args:
    xlabel: of all panels.
    ylabel: of all panels.
    lines: by the title of their panel, x and y by name; of the same names.
    dots: by the title of their panel, x and y.
    log: whether both axes are logarithmic.
  """
  with rc_context(_STYLE):
    width, height = 3.1, 2.9
    figure = Figure((1 + width * len(lines), height), layout='constrained')
    subplots = figure.subplots(
        1, len(lines), sharex=True, sharey=True, squeeze=False
    )[0]
    for axes, (title, named) in zip(subplots, lines.items(), strict=True):
      axes.set_title(title)
      axes.set_xlabel(xlabel)
      if dots:
        axes.plot(*dots[title], '.', color='#bbbbbb', markersize=3)
      for name, (x, y) in named.items():
        axes.plot(x, y, label=name)
      if log:
        axes.set_xscale('log')
        axes.set_yscale('log')
    subplots[0].set_ylabel(ylabel)
    figure.legend(
        *subplots[0].get_legend_handles_labels(), loc='outside right center'
    )
    return _svg(figure)


def _axes(title, xlabel):
  figure = Figure(figsize=_SIZE, layout='constrained')
  axes = figure.add_subplot()
  axes.set_title(title)
  axes.set_xlabel(xlabel)
  return figure, axes


def _svg(figure):
  buffer = io.StringIO()
  figure.savefig(buffer, format='svg', dpi=200, metadata={'Date': None})
  return buffer.getvalue()
