"""What a user can get wrong, and what a run can."""


class UserError(ValueError):
  """One line: what was wrong, what was given and what would be right."""

  def __str__(self) -> str:
    # Whatever a name holds, or a library says.
    return ''.join(c if c.isprintable() else ' ' for c in super().__str__())


class DivergedError(UserError):
  """A run whose loss is no longer finite."""
