"""What a user can get wrong."""


class UserError(ValueError):
  """One line: what was wrong, what was given and what would be right."""
