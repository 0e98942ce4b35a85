"""The report: one page that needs nothing else."""

import base64
import html.parser
import io
import re
from xml.etree import ElementTree

import numpy as np
from PIL import Image
import pytest
import tiny

from gmvq_jax.reporting import charts
from gmvq_jax.reporting import codecs
from gmvq_jax.reporting import pages
from gmvq_jax.training import config as config_lib


def make_contents():
  rng = np.random.default_rng(0)
  config = tiny.config('cifar10')
  records = [
      {'step': s, 'loss': 1 / s, 'mse': 0.1 / s, 'perplexity': 3.0 + s,
       'soft_perplexity': 4.0 + s, 'kl': 0.5, 'latent': 1.0,
       'posterior_entropy': 2.0, 'aggregated_entropy': 2.5,
       'temperature': 2.0 - s / 10}
      for s in range(1, 6)
  ]  # fmt: skip
  records.append(
      {'step': 5, 'split': 'validation', 'mse': 0.03, 'perplexity': 7.0}
  )
  kmeans = {
      'mse': 5e-3, 'psnr': 23.0, 'perplexity': 9.0, 'bits_per_image': 50.0,
      'side': 4, 'num_codes': 16, 'bits': 64.0,
  }  # fmt: skip
  return pages.Contents(
      fields=config_lib.flatten(config),
      defaults=config_lib.flatten(config_lib.default_config()),
      metrics={
          'mse': 0.0123456, 'psnr': 19.085, 'ssim': 0.5, 'perplexity': 12.34,
          'codes_used': 0.75, 'bits_per_image': 55.5, 'step': 8,
          'parameters_sha256': 'abcdef0123456789',
      },
      images_per_second=321.0,
      anchors={
          'kmeans': kmeans,
          'gaussian': {'mse': 2e-3, 'psnr': 27.0, 'block': 16, 'whole': True},
          'bits': 64.0,
          'codecs': [c._asdict() for c in codecs.at_most('cifar10', 640)],
      },
      records=records,
      images=rng.integers(0, 256, (3, 16, 16, 3), dtype=np.uint8),
      reconstructions=rng.uniform(size=(3, 16, 16, 3)),
      codes=rng.integers(0, 16, (3, 4, 4)),
      codebook=rng.normal(size=(16, 4)),
      code_counts=np.arange(16.0),
      num_steps=12,
  )  # fmt: skip


@pytest.fixture
def contents():
  return make_contents()


@pytest.fixture
def brief(contents):
  """Contents without records: drawing curves takes most of the time."""
  return contents._replace(records=[])


@pytest.fixture(scope='module')
def rendered():
  """The page of `contents`."""
  return pages.render(make_contents())


class Page(html.parser.HTMLParser):
  """The tags of a page, its text, and what it would fetch."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.sources, self.text, self.open = [], [], '', []
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.sources += [v for k, v in attrs if k in ('src', 'href', 'srcset')]
    if tag not in ('meta', 'img'):
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.text += data

  def images(self, kind):
    start = f'data:{kind};base64,'
    return [
        base64.b64decode(s.removeprefix(start))
        for s in self.sources
        if s.startswith(start)
    ]


def test_the_page_is_whole_and_fetches_nothing(rendered):
  """And has no scripts."""
  page = Page(rendered)
  assert page.open == []
  assert 'script' not in page.tags and 'link' not in page.tags
  assert all(source.startswith('data:image/') for source in page.sources)
  assert 'url(' not in rendered and '@import' not in rendered


def test_the_page_has_what_was_measured(rendered):
  text = ' '.join(Page(rendered).text.split())
  for words in (
      'gmvq on cifar10', '16 positions of 16 codes', '12.3', '19.09', '75.0 %',
      'step 8 of 12', '5.00', '2.00', 'GM-VQ + Entropy', '3.11', 'abcdef012345',
  ):  # fmt: skip
    assert words in text, words


def test_the_papers_figures_are_only_for_its_data(brief, rendered):
  assert 'the paper' in Page(rendered).text
  brief.fields['data.name'] = 'folder:x'
  assert 'the paper' not in Page(pages.render(brief)).text


def test_names_are_escaped(brief):
  brief.fields['data.name'] = 'folder:<script>alert(1)</script>'
  page = Page(pages.render(brief))
  assert 'script' not in page.tags
  assert '<script>' in page.text


def test_pictures_are_of_the_images(contents, rendered):
  pngs = Page(rendered).images('image/png')
  assert len(pngs) == 3
  picture = np.asarray(Image.open(io.BytesIO(pngs[1])))
  np.testing.assert_array_equal(picture[:, :16], contents.images[1])


def test_every_term_has_a_curve(rendered):
  svgs = Page(rendered).images('image/svg+xml')
  titles = ' '.join(
      ' '.join(ElementTree.fromstring(svg).itertext()) for svg in svgs
  )
  for words in (
      'MSE', 'validation', 'Perplexity', 'H(q(c|x))', 'H(q(c))', 'log C',
      'temperature', 'kl', 'latent', 'loss', 'The codebook', 'each code',
  ):  # fmt: skip
    assert words in titles, words


def test_a_run_without_records_and_codes_of_one_dimension(brief):
  """L = 1 has no plane to be drawn in; other quantizers have other terms."""
  bare = brief._replace(codebook=brief.codebook[:, :1])
  svgs = Page(pages.render(bare)).images('image/svg+xml')
  assert len(svgs) == 1 + 3


def test_what_is_unknown_is_left_out(brief, rendered):
  """No k-means for so many codes, no rate, nothing validated yet."""
  brief.anchors['kmeans'] = None
  del brief.anchors['codecs']  # As reports before them.
  bare = brief._replace(images_per_second=None)
  text, known = Page(pages.render(bare)).text, Page(rendered).text
  for words in ('k-means', 'images a second', 'best on validation', 'BPG'):
    assert words in known, words
    assert words not in text, words


def test_a_large_codebook_makes_no_large_page(brief, rng):
  large = brief._replace(
      codebook=rng.normal(size=(2**16, 4)).astype(np.float32),
      code_counts=rng.integers(0, 9, 2**16),
  )
  assert len(pages.render(large)) < 3e6


def test_a_page_is_written_whole_or_not_at_all(brief, tmp_path, monkeypatch):
  path = tmp_path / 'report.html'
  path.write_text('before')
  with monkeypatch.context() as patch:
    patch.setattr(charts, 'usage', None)
    with pytest.raises(TypeError):
      pages.write(path, brief)
  assert path.read_text() == 'before'
  pages.write(path, brief)
  assert path.read_text().startswith('<!doctype html>')
  assert list(tmp_path.iterdir()) == [path]


def test_curves_leave_out_what_is_not_finite():
  records = [{'step': 1, 'x': 1.0}, {'step': 2, 'x': float('nan')}, {'step': 3}]
  assert pages._curve(records, 'x') == ([1], [1.0])


@pytest.mark.parametrize(
    'value, text',
    [(0.0123456, '0.0123'), (1234.5, '1,234'), (12.34, '12.3'), (0, '0')],
)
def test_numbers_have_three_digits(value, text):
  assert pages.significant(value) == text


def test_plans_have_a_table_each(brief, rendered):
  program = {
      'images': 16, 'fits': True, 'needed': 3 * 2**20,
      'sizes': {'arguments': 2**20, 'temporaries': 2**21},
      'flops': 4.56e9, 'estimated_seconds': 7.89e-3,
      'sent': [{'bytes': 2**19}, {'bytes': 2**18}],
  }  # fmt: skip
  refused = program | {
      'fits': False, 'sizes': None, 'flops': None, 'estimated_seconds': None,
      'sent': [],
  }  # fmt: skip
  plan = {
      'topology': 'v5e:2x2', 'devices': 4, 'device_kind': 'TPU v5 lite',
      'memory': 2**34, 'jax': '0.10', 'largest_batch': 512,
      'programs': {'train step': program, 'encode': refused},
  }  # fmt: skip
  page = pages.render(brief._replace(plans=[plan]))
  cells = re.findall(r'<td>(.*?)</td>', page.partition('On v5e:2x2')[2])
  assert cells[:9] == [
      'train step', '16', 'yes', '1.00', '2.00', '3.00', '0.750', '4.56',
      '7.89',
  ]  # fmt: skip
  assert cells[9:18] == ['encode', '16', 'no', '', '', '3.00', '0', '', '']
  assert 'batch that fits is 512' in page
  assert 'largest batch' not in rendered
