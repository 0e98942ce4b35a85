"""Builds the pages of this folder into a site; see launch/docs.sh."""

import pathlib
import re
import types

import sphinx.addnodes
import sphinx.util.logging

import gmvq_jax

project = 'gmvq_jax'
extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon']
html_theme = 'furo'
html_title = 'gmvq_jax'
html_copy_source = False
html_show_copyright = False
html_static_path = ['_static']
html_css_files = ['site.css']
myst_enable_extensions = ['dollarmath']
myst_heading_anchors = 3
napoleon_use_ivar = True
napoleon_attr_annotations = False
autodoc_typehints_format = 'short'
python_maximum_signature_line_length = 80

DOCS = pathlib.Path(__file__).parent


def link_outside(app, page, source):
  """Makes README.md a page; other files outside of docs/ are downloads."""
  if page == 'readme':
    text = (DOCS.parent / 'README.md').read_text()
    text = re.sub(r'\]\((?!https?:|#|docs/)', '](../', text)
    source[0] = text.replace('](docs/', '](')
  text = source[0].replace('](../README.md', '](readme.md')
  # Else Markdown would be looked for among the pages.
  source[0] = re.sub(r'\]\((\.\./[^)#]+\.md\))', r'](path:\1', text)


def unlink_folders(app, doctree):
  """Leaves the words of links to folders, which a site has no pages of."""
  for link in list(doctree.findall(sphinx.addnodes.pending_xref)):
    if (DOCS / link['reftarget']).is_dir():
      link.replace_self(link.children)


def to_restructured_text(app, what, name, value, options, lines):
  """Rewrites a docstring, whose marks are backticks and indentation alone."""
  paragraphs = '\n'.join(lines).split('\n\n')
  for index, paragraph in enumerate(paragraphs):
    if paragraph.startswith('    '):
      paragraphs[index] = f'::\n\n{paragraph}'
    else:
      # Inside of backticks nothing else is a mark; outside, nothing is, nor
      # does the end of a sentence such as "num_codes: C." make a list.
      paragraphs[index] = re.sub(
          r'`([^`]+)`|([*|\\]|(?<=: [A-Z])\.)',
          lambda m: f'``{m[1]}``' if m[1] else f'\\{m[2]}',
          paragraph,
      )
  lines[:] = '\n\n'.join(paragraphs).split('\n')


def check_all_names(app, env):
  """Warns of public names that are on no page."""
  described = set(env.domains.python_domain.objects)
  for name in gmvq_jax.__all__:
    # A module has the name of where it lies.
    value = getattr(gmvq_jax, name)
    is_module = isinstance(value, types.ModuleType)
    full_name = value.__name__ if is_module else f'gmvq_jax.{name}'
    if full_name not in described:
      sphinx.util.logging.getLogger(__name__).warning(
          'gmvq_jax.%s is in __all__ but on no page; see docs/api.md', name
      )


def setup(app):
  """Connects all of this."""
  app.connect('source-read', link_outside)
  app.connect('doctree-read', unlink_folders)
  # Before napoleon, which knows the sections.
  app.connect('autodoc-process-docstring', to_restructured_text, priority=400)
  app.connect('env-check-consistency', check_all_names)
